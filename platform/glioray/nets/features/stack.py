"""A sequence of convolutions, ReLUs and poolings with named layers.

Not torchvision's models, which are not a dependency and whose in-place ReLUs overwrite features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_layers(layers: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError if no layer is requested, or one that is not in `known`."""
    unknown = [name for name in layers if name not in known]
    if unknown or not layers:
        raise ValueError(
            f"layers: found {', '.join(unknown) or 'none'}; expected one or more of {', '.join(known)}"
        )


class ConvStack(nn.Module):
    """The convolutions of an ImageNet classifier: (B, 3, H, W) to features by layer.

    `conv…` names a convolution's output, `relu…` the same after its ReLU. Has no weights, on the meta device,
    until `load_weights`, and raises an error before that, so that untrained features are never used.

    Args:
        convs: suffix of the layer's name -> convolution on the meta device, in order.
        pools: suffix of the layer's name -> (kernel, stride) of the max pooling before it.
        levels: the layers compared by LPIPS, one per resolution.
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
        """Layer -> features (B, K, h, w); computes no further than the deepest requested layer.

        Raises:
            ValueError: no weights, an unknown layer, no layer, or images that are too small.
        """
        check_layers(layers, self.layers)
        # torch itself would compute on the meta device without an error.
        if next(self.parameters()).is_meta:
            raise ValueError("the network has no weights; call load_weights first")
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
                # In place, unless the features are returned, to halve the memory.
                x = F.relu(x, inplace=f"conv{name}" not in layers)
                if f"relu{name}" in layers:
                    found[f"relu{name}"] = x
        return {name: found[name] for name in layers}

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load weights under torchvision's names, `features.N.weight` and `.bias`.

        Other keys are ignored.

        Raises:
            ValueError: the weights do not fit this network.
        """
        names = {key.split(".")[1] for key in state if key.startswith("features.")}
        order = sorted(filter(str.isdecimal, names), key=int)
        if len(order) != len(self.convs):
            raise ValueError(
                f"the weights have {len(order)} layers named 'features.N', but this network has {len(self.convs)} "
                "convolutions; pass torchvision's state dict of it"
            )
        weights = {}
        for number, (name, conv) in zip(order, self.convs.items(), strict=True):
            for kind in ("weight", "bias"):
                key, expected = f"features.{number}.{kind}", getattr(conv, kind)
                if key not in state or state[key].shape != expected.shape:
                    found = f"the shape {tuple(state[key].shape)}" if key in state else "nothing"
                    raise ValueError(
                        f"the weights have {found} under '{key}', but conv{name} has {tuple(expected.shape)}; pass "
                        "torchvision's state dict of this network"
                    )
                weights[f"convs.{name}.{kind}"] = state[key].detach().to(torch.float32, copy=True)
        self.load_state_dict(weights, assign=True)


def _check_side(x: Tensor, side: int, name: str, size: tuple[int, ...]) -> None:
    if min(x.shape[-2:]) < side:
        raise ValueError(
            f"images of {size} are too small for conv{name}; use larger images or earlier layers"
        )
