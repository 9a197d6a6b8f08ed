"""U-Net++ (Zhou et al. 2018, arXiv 1807.10165; 2019, arXiv 1912.05074)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import ConvBlock, pad_to_multiple
from glioray.nets.outputs import TrainingOutputs


class UNetPP(nn.Module):
    """Nested U-Nets of every depth up to `depth`, with densely connected skips.

    (B, in_channels, H, W) to logits (B, out_channels, H, W), any H and W; padded as in `UNet`. The node at
    level i and column j reads all earlier columns of its level and the node below them; the last node of the
    first level gives the logits. With `deep_supervision`, training returns `TrainingOutputs` whose sides are the
    columns before the last, deepest first. Evaluation uses the last column only (the papers' fast mode).

    Deviations: normalisation and leaky ReLU instead of ReLU; no mean over heads (the papers' accurate mode).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level, 32 in the papers; doubled at each level down.
        depth: levels below the first.
        norm: a name of `blocks.NORMS`.
        deep_supervision: whether every column of the first level has a head.
        prune: the column from 1 to depth that gives the logits. Nodes beyond it are not built, and are ignored
            when the state dict of a whole network is loaded. None prunes nothing.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 32,
        depth: int = 4,
        norm: str = "instance",
        deep_supervision: bool = False,
        prune: int | None = None,
    ) -> None:
        super().__init__()
        if width < 1 or not 1 <= depth <= 7:
            raise ValueError(
                f"width is {width} and depth is {depth}; expected width >= 1 and depth from 1 to 7"
            )
        if prune is not None and not 1 <= prune <= depth:
            raise ValueError(f"prune is {prune}; expected a column from 1 to depth, which is {depth}")
        self.depth, self.is_pruned = depth, prune is not None
        self.last = depth if prune is None else prune
        self.divisor = 1 << depth
        self.nodes = nn.ModuleDict()
        self.ups = nn.ModuleDict()
        for column in range(self.last + 1):
            for level in range(self.last + 1 - column):
                here = width << level
                if column:
                    self.ups[f"{level}_{column}"] = nn.ConvTranspose2d(2 * here, here, 2, stride=2)
                    source = (column + 1) * here
                else:
                    source = here // 2 if level else in_channels
                self.nodes[f"{level}_{column}"] = ConvBlock(source, here, norm=norm)
        columns = range(1 if deep_supervision else self.last, self.last + 1)
        self.register_load_state_dict_pre_hook(_drop_pruned)
        self.outputs = nn.ModuleDict({str(column): nn.Conv2d(width, out_channels, 1) for column in columns})

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits."""
        return list(self.outputs.values())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        # Padded as for the full depth, so that pruning does not change the remaining columns.
        x = pad_to_multiple(x, self.divisor, at_least=2 * self.divisor)
        rows: list[list[Tensor]] = []
        for level in range(self.last + 1):
            rows.append([self.nodes[f"{level}_0"](F.max_pool2d(x, 2) if level else x)])
            x = rows[level][0]
        for column in range(1, self.last + 1):
            for level in range(self.last + 1 - column):
                key = f"{level}_{column}"
                up = self.ups[key](rows[level + 1][column - 1])
                rows[level].append(self.nodes[key](torch.cat([*rows[level], up], dim=1)))

        def column_logits(column: int) -> Tensor:
            logits: Tensor = self.outputs[str(column)](rows[0][column])
            return logits[..., :height, :width]

        logits = column_logits(self.last)
        if not self.training or len(self.outputs) == 1:
            return logits
        return TrainingOutputs(
            logits, tuple(column_logits(column) for column in reversed(range(1, self.last)))
        )


def _drop_pruned(net: UNetPP, state: dict[str, Any], prefix: str, *_args: object) -> None:
    """Remove keys of pruned nodes from a whole network's state dict.

    Other unknown keys remain errors.
    """
    for key in [key for key in state if key.startswith(prefix)]:
        kind, _, rest = key.removeprefix(prefix).partition(".")
        place = rest.partition(".")[0]
        if kind == "outputs":
            pruned = place not in net.outputs and net.is_pruned
        elif kind in ("nodes", "ups"):
            level, _, column = place.partition("_")
            # A node is needed by the columns of the first level that are at least its level plus its column.
            pruned = net.last < int(level) + int(column) <= net.depth
        else:
            pruned = False
        if pruned:
            del state[key]
