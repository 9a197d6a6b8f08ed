"""Runs without Ray and MLflow, in this process or, as a script, on one of several ranks.

    python runs.py FOLDER RANK WORLD_SIZE

reads the pickled plans `FOLDER/plans.pickle`, meets the other ranks over a file there, does what `on_rank` does and
leaves what came out as `FOLDER/rank-RANK.pt`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig
from glioray.engine.collectives import Ranks, from_first, gather, reduce_max, reduce_sum
from glioray.engine.loop import Feed, fit
from glioray.engine.run import RunPlan
from glioray.errors import CaseError
from glioray.losses import SEGMENTATION_LOSSES, build_loss
from glioray.nets.blocks import GlobalBatchNorm2d
from glioray.nets.outputs import TrainingOutputs
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.slices.store import Batch
from glioray.storage import Storage, open_storage
from glioray.tasks.segmentation.learner import SegmentationLearner
from glioray.tasks.segmentation.training import prepare_segmentation

CPU = torch.device("cpu")
# Every loss but those whose import takes seconds: a Dice and a mean over samples, as others here.
LOSSES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in SEGMENTATION_LOSSES if "boundary" not in name and "haus" not in name},
    "weighted": {"name": "ce", "class_weights": [0.1, 2.0, 0.7, 3.0]},
    "weighted regions": {"name": "region_focal", "class_weights": [2.0, 0.7, 3.0]},
    "supervised": {"name": "dice_ce", "sides": True, "presence_weight": 0.5},
    "supervised regions": {"name": "region_dice_bce", "sides": True, "presence_weight": 0.0},
}


def decode(data: str, entry: CaseEntry, config: PreprocessConfig) -> tuple[SliceStack, ...]:
    """A case's slices, fresh from its files."""
    assert entry.convention is not None
    case = load_case(open_storage(data), entry.files, convention=CONVENTIONS[entry.convention])
    return preprocess(case, config)


def fill(
    data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig
) -> dict[str, CaseError]:
    """Brings cases into the cache without Ray."""
    there = SliceCache(cache, config)
    for entry in entries:
        if not there.has(entry):
            there.put(entry, decode(data, entry, config))
    return {}


class Killed(Exception):  # noqa: N818  (it is what happens to a process, no error of ours)
    """The process is gone."""


def killed_at(step: int, recorded: type) -> type:
    """A recorded task whose process is gone after so many steps."""

    class Task(recorded):  # type: ignore[misc]
        def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
            if len(self.rows) == step:
                raise Killed
            return super().train_step(batch, epoch, progress)  # type: ignore[no-any-return]

    return Task


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Bitwise, through dicts and lists."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


class Recorded(SegmentationLearner):
    """A task that keeps each step's figures and the weights after it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows: list[dict[str, float]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        self.rows.append(super().train_step(batch, epoch, progress))
        self.weights.append({name: t.detach().clone() for name, t in self.net.state_dict().items()})
        return self.rows[-1]


def build(
    plan: RunPlan, ranks: Ranks | None = None, task: type[SegmentationLearner] = Recorded
) -> tuple[Any, Feed]:
    """A task and its feed, put together as a session does."""
    prepared = prepare_segmentation(plan, ranks or Ranks(), fill, CPU, task)
    return prepared.learner, prepared.feed


def train(
    plan: RunPlan,
    ranks: Ranks | None = None,
    task: type[SegmentationLearner] = Recorded,
    storage: Storage | None = None,
    save_every_s: float = 300.0,
) -> tuple[Any, dict[str, float]]:
    """The task after its run, and the run's figures."""
    ranks = ranks or Ranks()
    built, feed = build(plan, ranks, task)
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
    return built, metrics


def batch_norm(ranks: Ranks) -> dict[str, Any]:
    """Two steps of a batch norm in training on this rank's part of a batch of 8, and one in evaluation."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), GlobalBatchNorm2d(4), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ddp = nn.parallel.DistributedDataParallel(net) if ranks.world_size > 1 else net
    width = 8 // ranks.world_size
    mine = slice(ranks.rank * width, (ranks.rank + 1) * width)
    outputs, gradients = [], []
    for _ in range(2):
        images = (3 * torch.randn(8, 3, 9, 9, generator=generator) + 2)[mine].requires_grad_()
        output = ddp(images)
        ddp.zero_grad()
        output.square().mean().backward()
        outputs.append(output.detach())
        # A rank's mean is over its own part: its images' gradient is that of `world_size` times the whole's.
        gradients.append(images.grad / ranks.world_size)
    weights = [parameter.grad for parameter in net.parameters()]
    buffers = {name: tensor.clone() for name, tensor in net[1].named_buffers()}
    with torch.no_grad():
        judged = ddp.eval()(torch.randn(2, 3, 9, 9, generator=generator) + ranks.rank)
    return {"outputs": outputs, "images": gradients, "weights": weights, "buffers": buffers, "judged": judged}


class Sides(nn.Module):
    """A convolution's logits, a side output and the presence."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.side, self.presence = (nn.Conv2d(4, channels, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> TrainingOutputs:
        return TrainingOutputs(self.conv(x), (self.side(x),), self.presence(x).amax((2, 3)))


def loss_gradients(ranks: Ranks, name: str, *, sides: bool = False, **options: Any) -> dict[str, Any]:
    """A loss of this rank's part of a batch of 4, and the gradients of one convolution, or of several, under it."""
    generator = torch.Generator().manual_seed(1)
    channels = 3 if "regions" in SEGMENTATION_LOSSES[name].targets else 4
    net = Sides(channels) if sides else nn.Conv2d(4, channels, 1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images = torch.randn(4, 4, 8, 8, generator=generator) * torch.arange(1, 5).view(4, 1, 1, 1)
    masks = torch.randint(0, 4, (4, 8, 8), generator=generator, dtype=torch.uint8)
    masks[:2] = 0  # one rank without any tumour
    ddp = nn.parallel.DistributedDataParallel(net) if ranks.world_size > 1 else net
    width = 4 // ranks.world_size
    mine = slice(ranks.rank * width, (ranks.rank + 1) * width)
    loss = build_loss(name, reduce=reduce_sum, **options)(ddp(images[mine]), masks[mine])
    loss.backward()
    return {"loss": loss.detach(), "gradients": [parameter.grad for parameter in net.parameters()]}


def on_rank(ranks: Ranks, plans: dict[str, RunPlan]) -> dict[str, Any]:
    """All that is compared between one rank and two."""
    runs = {}
    for name, plan in plans.items():
        task, metrics = train(plan, ranks)
        runs[name] = {
            "rows": task.rows,
            "weights": task.weights,
            "metrics": metrics,
            "cases": task.spec.val_cases,
        }
    agreed = [reduce_max(float(ranks.rank)), from_first(ranks.rank + 5.0), gather(ranks.rank)]
    return {
        "runs": runs,
        "batch_norm": batch_norm(ranks),
        "losses": {label: loss_gradients(ranks, **settings) for label, settings in LOSSES.items()},
        "agreed": agreed,
    }


def meet(folder: Path, rank: int, world_size: int, work: Callable[[Ranks, Any], Any]) -> None:
    """What a script does on one of several ranks with the plans that lie in a folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/meeting",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    plans = pickle.loads((folder / "plans.pickle").read_bytes())
    ranks = Ranks(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
    torch.save(work(ranks, plans), folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    meet(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), on_rank)
