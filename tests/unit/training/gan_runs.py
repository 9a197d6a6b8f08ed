"""Super-resolution runs without Ray and MLflow, in this process or, as a script, on one of several ranks.

    python gan_runs.py FOLDER RANK WORLD_SIZE

reads the pickled plans `FOLDER/plans.pickle`, meets the other ranks over a file there, does what `on_rank` does and
leaves what came out as `FOLDER/rank-RANK.pt`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Beside this file, whose folder is on the path of a script and of pytest.
from runs import CPU, Killed, assert_same, fill, killed_at, meet
from torch import Tensor, nn

from glioray.engine.collectives import Ranks
from glioray.engine.loop import Feed, fit
from glioray.engine.run import RunPlan
from glioray.errors import DivergenceError
from glioray.losses.perceptual import PerceptualLoss
from glioray.slices.store import Batch
from glioray.storage import Storage, open_storage
from glioray.tasks.superres.learner import GanLearner
from glioray.tasks.superres.training import prepare_gan

__all__ = ["Killed", "assert_same", "killed_at"]  # for tests, with what is here


class Features(nn.Module):
    """Two random convolutions that nobody trains."""

    layers = ("one", "two")

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.requires_grad_(False)

    def forward(self, images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        one = self.one(images).tanh()
        made = {"one": one, "two": self.two(one).tanh()}
        return {name: made[name] for name in layers}


class Recorded(GanLearner):
    """A task that keeps each step's figures and the weights of both players after it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rows: list[dict[str, float]] = []
        self.weights: list[dict[str, Tensor]] = []
        if self.config.loss.perceptual_weight:
            self.perceptual = PerceptualLoss(Features(), {"one": 1.0, "two": 0.5}, crop=16)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        self.rows.append(super().train_step(batch, epoch, progress))
        self.weights.append(self.snapshot())
        return self.rows[-1]

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all weights and buffers."""
        nets = {"generator": self.generator, "critic": self.critic}
        return {
            f"{who}.{name}": tensor.detach().clone()
            for who, net in nets.items()
            for name, tensor in net.state_dict().items()
        }


def build(plan: RunPlan, ranks: Ranks | None = None, task: type[GanLearner] = Recorded) -> tuple[Any, Feed]:
    """A task and its feed, put together as a session does."""
    prepared = prepare_gan(plan, ranks or Ranks(), fill, CPU, task)
    return prepared.learner, prepared.feed


def train(
    plan: RunPlan,
    ranks: Ranks | None = None,
    task: type[GanLearner] = Recorded,
    storage: Storage | None = None,
    change: Callable[[Any], None] = lambda task: None,
    save_every_s: float = 300.0,
) -> tuple[Any, dict[str, float], list[dict[str, float]]]:
    """The task after its run, the run's figures, and those of each validation."""
    ranks = ranks or Ranks()
    built, feed = build(plan, ranks, task)
    change(built)
    reports: list[dict[str, float]] = []
    metrics = fit(
        built,
        feed,
        plan.config.train,
        storage or open_storage(plan.storage),
        ranks,
        reports.append,
        save_every_s=save_every_s,
    )
    assert not reports or reports[-1] == metrics
    return built, metrics, reports


def poison(task: GanLearner, name: str, rank: int) -> None:
    """Have a run diverge, if this is the first rank or the fault lies with the weights, which ranks share.

    Args:
        task: of the run.
        name: the player whose weights hold a NaN, or whose loss or gradient becomes one.
        rank: of this process.
    """
    who, _, what = name.partition(" ")
    net = {"generator": task.generator, "discriminator": task.critic}[who]
    if what == "weights":
        with torch.no_grad():
            list(net.parameters())[2].fill_(float("nan"))
    elif rank == 0 and what == "gradient":
        list(net.parameters())[2].register_hook(lambda gradient: gradient * float("nan"))
    elif rank == 0 and who == "generator":
        task.perceptual = lambda sr, hr, rngs: sr.mean() * 0 + float("inf")
    elif rank == 0:
        plain = task.game.discriminator
        task.game.discriminator = lambda real, fake: plain(real, fake) + float("inf")  # type: ignore[method-assign]


POISONED = "hinge, spectral, r1"
"""The plan whose runs are made to diverge: both players move in each step, and no average stands in for weights."""

FAULTS = tuple(
    f"{who} {what}" for who in ("generator", "discriminator") for what in ("weights", "gradient", "loss")
)


def diverge(plan: RunPlan, ranks: Ranks, fault: str) -> tuple[str, bool]:
    """What a poisoned run says, and whether the weights of its last step were left alone."""
    task, feed = build(plan, ranks)
    poison(task, fault, ranks.rank)
    before = task.snapshot()
    try:
        task.train_step(next(feed.epoch(1)), 1, 0.9)
    except DivergenceError as error:
        who = "generator" if fault.startswith("generator") else "critic"
        after = task.snapshot()
        kept = all(
            torch.equal(torch.nan_to_num(after[name]), torch.nan_to_num(tensor))
            for name, tensor in before.items()
            if name.startswith(who) and "parametrizations" not in name and "running" not in name
        )
        return str(error), kept
    return "", False


def on_rank(ranks: Ranks, plans: dict[str, RunPlan]) -> dict[str, Any]:
    """All that is compared between one rank and two."""
    made: dict[str, Any] = {"runs": {}}
    for name, plan in plans.items():
        task, metrics, reports = train(plan, ranks)
        made["runs"][name] = {
            "rows": task.rows,
            "weights": task.weights,
            "metrics": metrics,
            "stages": [report["stage"] for report in reports],
            "stopped": task.stopped,
        }
    plan = plans[POISONED]
    made["faults"] = {fault: diverge(plan, ranks, fault) for fault in FAULTS}
    return made


if __name__ == "__main__":
    meet(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), on_rank)
