"""MONAI's networks give the outputs of MONAI's own code, and MONAI is imported only when one is built."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import nn

from glioray.nets import build_net
from glioray.nets.blocks import GlobalBatchNorm2d
from glioray.nets.monai_nets import FlatDynUNet
from glioray.nets.outputs import TrainingOutputs


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_sides", [0, 1, 2])
def test_the_flat_dynunet_equals_monais(residual: bool, num_sides: int):
    theirs = DynUNet(
        spatial_dims=2,
        in_channels=2,
        out_channels=3,
        kernel_size=[3] * 4,
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2] * 3,
        filters=[4, 6, 8, 10],
        deep_supervision=num_sides > 0,
        deep_supr_num=max(1, num_sides),
        res_block=residual,
    )
    ours = FlatDynUNet(theirs)
    images = _noise(2, 2, 32, 48)
    found, expected = ours(images), theirs(images)
    if num_sides:
        assert len(found) == 1 + num_sides
        # MONAI upsamples by nearest neighbours and stacks.
        stacked = torch.stack([F.interpolate(level, (32, 48)) for level in found], dim=1)
        assert torch.equal(stacked, expected)
    else:
        assert torch.equal(found, expected)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
    assert set(ours.state_dict()) < set(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=False)


@pytest.mark.parametrize(
    ("name", "options", "num_sides"),
    [
        ("dynunet", {"width": 4, "depth": 4}, 2),
        ("dynunet", {"width": 4, "depth": 3}, 1),
        ("resenc", {"width": 4, "blocks": [1, 1, 1, 1]}, 1),
        ("resenc", {"width": 4, "blocks": [1, 1, 1, 1, 1]}, 2),
    ],
)
def test_deep_supervision_at_all_levels_except_the_deepest(
    name: str, options: dict[str, Any], num_sides: int
):
    net = build_net(name, in_channels=4, out_channels=3, deep_supervision=True, **options)
    images = _noise(1, 4, 64, 64)
    levels, found = net.net(images), net(images)
    assert isinstance(found, TrainingOutputs)
    assert [level.shape[-1] for level in levels] == [64, 32, 16][: 1 + num_sides]
    assert torch.equal(found.logits, levels[0])
    for side, level in zip(found.sides, levels[1:], strict=True):
        torch.testing.assert_close(side, F.interpolate(level, (64, 64), mode="bilinear"))
    assert [head.in_channels for head in net.heads()] == [4, 8, 16][: 1 + num_sides]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention_unet", {"width": 2, "depth": 1}),
        ("dynunet", {"width": 2, "depth": 2, "norm": "batch"}),
        ("resenc", {"width": 2, "blocks": [1, 1], "norm": "batch"}),
        ("segresnet", {"width": 2, "norm": "batch"}),
        ("swin_unetr", {"norm": "batch"}),
    ],
)
def test_batch_normalisation_uses_all_ranks(name: str, options: dict[str, Any]):
    net = build_net(name, in_channels=1, out_channels=1, **options)
    kinds = {type(module) for module in net.modules() if isinstance(module, nn.BatchNorm2d)}
    assert kinds == {GlobalBatchNorm2d}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dynunet", {"depth": 1}, "depth is 1; expected .* depth from 2 to 7"),
        ("dynunet", {"depth": 2, "deep_supervision": True}, "depth is 2; expected at least 3"),
        ("dynunet", {"norm": "layer"}, "norm is 'layer'; expected one of batch, group, instance"),
        (
            "dynunet",
            {"width": 12, "norm": "group"},
            "width is 12; expected a multiple of 8 with norm 'group'",
        ),
        ("resenc", {"blocks": [1, 0]}, r"blocks is \(1, 0\); expected .* 2 to 8 numbers of at least 1"),
        ("segresnet", {"blocks_up": [1]}, "one number fewer in blocks_up than in blocks_down"),
        ("attention_unet", {"width": 1}, "width is 1 .*; expected width >= 2"),
        ("swin_unetr", {"width": 16}, "expected width a multiple of 12"),
        ("swin_unetr", {"num_heads": [5, 6, 12, 24]}, "expected heads that divide each level's features"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build_net(name, in_channels=4, out_channels=3, **options)


@pytest.mark.contracts
def test_the_registry_does_not_import_monai():
    code = "import sys, glioray.nets; sys.exit('monai' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
    )
