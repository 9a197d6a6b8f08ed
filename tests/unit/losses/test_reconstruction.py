"""Pixel losses for super-resolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glioray.losses.reconstruction import PIXEL_LOSSES, build_pixel_loss


def _pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 2, 5, 7, generator=generator), torch.rand(3, 2, 5, 7, generator=generator)


def test_l1_and_mse_equal_torchs():
    sr, hr = _pair()
    torch.testing.assert_close(build_pixel_loss("l1")(sr, hr), F.l1_loss(sr, hr))
    torch.testing.assert_close(build_pixel_loss("mse")(sr, hr), F.mse_loss(sr, hr))


def test_charbonnier_is_close_to_l1_and_smooth_at_zero():
    sr, hr = _pair()
    loss = build_pixel_loss("charbonnier")
    l1 = F.l1_loss(sr, hr)
    assert l1 < loss(sr, hr) < l1 + 1e-3
    sr = hr.clone().requires_grad_()
    same = loss(sr, hr)
    same.backward()
    assert float(same.detach()) == pytest.approx(1e-3)
    assert not sr.grad.any()


@pytest.mark.parametrize("name", sorted(PIXEL_LOSSES))
def test_half_precision_is_computed_in_float32(name: str):
    sr, hr = _pair()
    rounded = sr.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = build_pixel_loss(name)(rounded, hr)
    assert found.dtype == torch.float32
    assert float(found.detach()) == float(build_pixel_loss(name)(rounded.detach().float(), hr))
    found.backward()
    assert torch.isfinite(rounded.grad).all()
    assert rounded.grad.any()


def test_unknown_names_and_different_shapes_are_rejected():
    sr, hr = _pair()
    with pytest.raises(ValueError, match="No pixel loss 'l2'; available: charbonnier, l1, mse"):
        build_pixel_loss("l2")
    for name in PIXEL_LOSSES:
        with pytest.raises(
            ValueError, match=r"sr has the shape \(3, 1, 5, 7\); expected that of hr, \(3, 2, 5, 7\)"
        ):
            build_pixel_loss(name)(sr[:, :1], hr)
