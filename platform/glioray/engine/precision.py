"""Where a network computes and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

MAX_SPACING_RATIO = 1.6


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, its weights laid out for convolutions over channels-last images."""
    moved: Any = net
    return moved.to(device, memory_format=torch.channels_last)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 autocast where `precision` says so: "auto" means wherever the device computes in bf16."""
    if precision == "fp32" or (precision == "auto" and not gains_by_bf16(device)):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def gains_by_bf16(device: torch.device) -> bool:
    """Whether the device has arithmetic of its own for bf16; without, it is emulated and slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
