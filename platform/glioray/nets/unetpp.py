"""U-Net++ (Zhou et al. 2018, arXiv 1807.10165; 2019, arXiv 1912.05074)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets.blocks import ConvBlock, pad_to_multiple
from glioray.nets.outputs import TrainingOutputs


class UNetPP(nn.Module):
    """U-Nets of every depth up to `depth`, one within the other, with densely connected skips.

    (B, in_channels, H, W) to logits (B, out_channels, H, W), any H and W: the input is padded with zeros as
    in `UNet`. The node of level i and column j reads the columns before it on its level and the node below
    them; the last of the first level gives the logits. With `deep_supervision` training returns `TrainingOutputs`,
    whose sides are the columns before the last, the deepest first; evaluation is the papers' fast mode, the
    last column alone.

    Deviations: normalisation and leaky ReLU in place of plain ReLU; a head trained alone in place of the
    papers' mean over heads (the accurate mode).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        width: filters of the first level; doubled at each level down. The papers' are 32.
        depth: levels below the first.
        norm: a name of `blocks.NORMS`.
        deep_supervision: heads on every column of the first level.
        prune: the column that gives the logits, 1 to depth; what lies behind it is not built, and left out of a
            state dict of the whole network that is loaded. None is depth.

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
            raise ValueError(f"width {width}, depth {depth}: expected width from 1, depth 1 to 7")
        if prune is not None and not 1 <= prune <= depth:
            raise ValueError(f"prune {prune}: expected a column from 1 to depth, which is {depth}")
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
        self.register_load_state_dict_pre_hook(_leave_out_pruned)
        self.outputs = nn.ModuleDict({str(column): nn.Conv2d(width, out_channels, 1) for column in columns})

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions whose outputs are logits."""
        return list(self.outputs.values())  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor | TrainingOutputs:
        height, width = x.shape[-2:]
        # Padded as at full depth, so that pruning changes no column that is left.
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

        def answer(column: int) -> Tensor:
            logits: Tensor = self.outputs[str(column)](rows[0][column])
            return logits[..., :height, :width]

        logits = answer(self.last)
        if not self.training or len(self.outputs) == 1:
            return logits
        return TrainingOutputs(logits, tuple(answer(column) for column in reversed(range(1, self.last))))


def _leave_out_pruned(net: UNetPP, state: dict[str, Any], prefix: str, *_given: object) -> None:
    """Of a whole network's state, drops what this one has pruned; any other key stays and is an error."""
    for key in [key for key in state if key.startswith(prefix)]:
        kind, _, rest = key.removeprefix(prefix).partition(".")
        place = rest.partition(".")[0]
        if kind == "outputs":
            pruned = place not in net.outputs and net.is_pruned
        elif kind in ("nodes", "ups"):
            level, _, column = place.partition("_")
            # A node serves the columns of the first level from the sum of its level and column on.
            pruned = net.last < int(level) + int(column) <= net.depth
        else:
            pruned = False
        if pruned:
            del state[key]
