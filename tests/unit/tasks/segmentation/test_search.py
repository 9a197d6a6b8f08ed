"""What a trial of a segmentation search costs."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from glioray.config import with_settings
from glioray.nets import SEGMENTATION_NETS
from glioray.tasks.segmentation import search
from glioray.tasks.segmentation.recipes import build_recipe
from glioray.tasks.segmentation.search import gflops_per_slice

TINY = build_recipe("unet_tiny")


def test_a_convolution_counts_a_multiplication_and_an_addition_a_weight_and_pixel(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(search, "build_net", lambda *_, **__: nn.Conv2d(4, 3, 3, padding=1))
    height, width = TINY.preprocess.size
    assert gflops_per_slice(TINY) * 1e9 == 2 * height * width * 4 * 3 * 9


@pytest.mark.parametrize(
    "more", [{"net.options.width": 16}, {"preprocess.size": [128, 96]}, {"net.options.stem_stride": 1}]
)
def test_a_wider_network_a_larger_slice_or_a_finer_stem_cost_more(more: dict[str, Any]):
    config = with_settings(TINY, {"net.options.stem_stride": 2})
    assert gflops_per_slice(with_settings(config, more)) > gflops_per_slice(config)


@pytest.mark.parametrize("name", SEGMENTATION_NETS)
@pytest.mark.contracts
def test_every_network_has_a_cost(name: str):
    config = with_settings(TINY, {"net.name": name, "net.options": {}})
    assert gflops_per_slice(config) > 0
