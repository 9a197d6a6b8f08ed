"""The device and the precision of a network's arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

MAX_SPACING_RATIO = 1.6
"""The largest ratio, either way, of a case's pixel spacing to that in training before a model warns."""


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, with its weights in channels-last layout for convolutions."""
    moved: Any = net
    return moved.to(device, memory_format=torch.channels_last)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """A context for bf16 autocast; "fp32" gives none.

    "auto" uses bf16 if the device supports it natively.
    """
    if precision == "fp32" or (precision == "auto" and not gains_by_bf16(device)):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def gains_by_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 natively; emulated bf16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
