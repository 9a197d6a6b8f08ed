"""Convolutions, ReLUs and poolings in a row, whose layers are asked for by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_layers(layers: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError when no layer is asked for, or one that is not known."""
    unknown = [name for name in layers if name not in known]
    if unknown or not layers:
        raise ValueError(
            f"layers {', '.join(unknown) or '(none)'} are not of this network; its layers are {', '.join(known)}"
        )


class ConvStack(nn.Module):
    """An ImageNet classifier's convolutions: (B, 3, H, W) to the features of named layers.

    `conv…` names a convolution's output, `relu…` the same after its ReLU.

    It begins without weights, on the meta device: `load_weights` brings them, and until then it refuses to
    compute, so that untrained features never pass for trained ones.

    Args:
        convs: what follows "conv" in a layer's name -> the convolution, in order; made on the meta device.
        pools: the same -> (kernel, stride) of the max pooling before it.
        levels: the layers that LPIPS compares, one for each resolution.
    """

    def __init__(
        self,
        convs: Mapping[str, nn.Conv2d],
        *,
        pools: Mapping[str, tuple[int, int]],
        levels: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(convs)
        self.pools = dict(pools)
        self.layers = tuple(f"{kind}{name}" for name in convs for kind in ("conv", "relu"))
        self.levels = levels

    def forward(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Layer -> its features (B, K, h, w), computed as far as the deepest layer asked for.

        Raises:
            ValueError: no weights yet, a layer that is not in `layers`, no layer, or images too small for one.
        """
        check_layers(layers, self.layers)
        # Torch itself goes on with whatever it finds there.
        if next(self.parameters()).is_meta:
            raise ValueError("the network has no weights yet; give it trained ones with load_weights")
        deepest = max(self.layers.index(name) for name in layers)
        size = tuple(x.shape[-2:])
        found: dict[str, Tensor] = {}
        for index, name in enumerate(self.convs):
            conv = self.convs[name]
            assert isinstance(conv, nn.Conv2d)
            if 2 * index > deepest:
                break
            if name in self.pools:
                kernel, stride = self.pools[name]
                _check_side(x, kernel, name, size)
                x = F.max_pool2d(x, kernel, stride)
            _check_side(x, conv.kernel_size[0] - 2 * int(conv.padding[0]), name, size)
            x = conv(x)
            if f"conv{name}" in layers:
                found[f"conv{name}"] = x
            if 2 * index < deepest:
                # In place, but for features that somebody keeps: half the memory.
                x = F.relu(x, inplace=f"conv{name}" not in layers)
                if f"relu{name}" in layers:
                    found[f"relu{name}"] = x
        return {name: found[name] for name in layers}

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights from torchvision's names: `features.N.weight` and `.bias`; others are left alone.

        Raises:
            ValueError: they are not of this network.
        """
        names = {key.split(".")[1] for key in state if key.startswith("features.")}
        order = sorted(filter(str.isdecimal, names), key=int)
        if len(order) != len(self.convs):
            raise ValueError(
                f"the weights have {len(order)} layers named 'features.N', but this network has {len(self.convs)} "
                f"convolutions; give a state dict of torchvision's"
            )
        taken = {}
        for number, (name, conv) in zip(order, self.convs.items(), strict=True):
            for kind in ("weight", "bias"):
                key, wanted = f"features.{number}.{kind}", getattr(conv, kind)
                if key not in state or state[key].shape != wanted.shape:
                    found = f"the shape {tuple(state[key].shape)}" if key in state else "nothing"
                    raise ValueError(
                        f"the weights have {found} under '{key}', but conv{name} has {tuple(wanted.shape)}; give a "
                        f"state dict of torchvision's"
                    )
                taken[f"convs.{name}.{kind}"] = state[key].detach().to(torch.float32, copy=True)
        self.load_state_dict(taken, assign=True)


def _check_side(x: Tensor, side: int, name: str, size: tuple[int, ...]) -> None:
    if min(x.shape[-2:]) < side:
        raise ValueError(f"images of {size} are too small for conv{name}; use larger ones or earlier layers")
