"""Blocks that the networks share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(_num_groups(channels), channels),
    "batch": nn.BatchNorm2d,
    "none": lambda channels: nn.Identity(),
}
"""Normalisations by name. Batch norm's statistics are a rank's own: two ranks differ from one with it."""


def build_norm(name: str, channels: int) -> nn.Module:
    """A normalisation layer by name.

    Raises:
        ValueError: a name that is not in `NORMS`.
    """
    if name not in NORMS:
        raise ValueError(f"'{name}' is not a normalisation; they are {', '.join(sorted(NORMS))}")
    return NORMS[name](channels)


class ConvBlock(nn.Module):
    """`num_convs` times 3x3 convolution, normalisation, leaky ReLU; (B, C, H, W) to (B, out, H, W).

    With `residual` the input is added before the last activation (He et al., arXiv 1512.03385), through a
    1x1 convolution where the channels differ.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: str = "instance",
        num_convs: int = 2,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(num_convs):
            source = in_channels if number == 0 else out_channels
            layers += [
                nn.Conv2d(source, out_channels, 3, padding=1, bias=norm == "none"),
                build_norm(norm, out_channels),
            ]
            if number < num_convs - 1:
                layers.append(nn.LeakyReLU(0.01, inplace=True))
        self.layers = nn.Sequential(*layers)
        self.skip: nn.Module | None = None
        if residual:
            same = in_channels == out_channels
            self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.last = nn.Sequential(
            nn.LeakyReLU(0.01, inplace=True), nn.Dropout2d(dropout) if dropout else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return self.last(y if self.skip is None else y + self.skip(x))


def _num_groups(channels: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
