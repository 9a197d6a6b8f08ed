"""A third task, small enough to read at once: how much of a slice is tumour, by a line through its mean intensities.

It proves that a task is a folder and a line in `TASKS`: the engines train, search, compare, register, promote and
serve it as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from fastapi import Response
from optuna.distributions import FloatDistribution
from pydantic import BaseModel, Field
from torch import nn

from glioray.cases.manifest import CaseEntry
from glioray.config import PreprocessConfig, TaskConfig, TrainConfig
from glioray.engine.checkpoint import Checkpoint
from glioray.engine.collectives import Ranks, gather
from glioray.engine.evaluation import select_cases
from glioray.engine.feed import load_slices
from glioray.engine.package import parse_format, read_files
from glioray.engine.promotion import Outcome, compare_scores
from glioray.engine.run import Fill, RunPlan
from glioray.engine.search import Search
from glioray.engine.serving import Endpoint, Routes
from glioray.engine.task import Export, ModelPackage, Prepared
from glioray.engine.trials import count_rows
from glioray.serialization import from_dict, to_dict
from glioray.slices.store import Batch, SliceStore

FORMAT = "test-share-1"


class ShareConfig(TaskConfig):
    task: ClassVar[str] = "share"
    preprocess: PreprocessConfig = PreprocessConfig(size=(96, 96))
    train: TrainConfig = TrainConfig(batch_size=8, max_epochs=2, num_validations=2, precision="fp32")
    lr: float = Field(0.01, gt=0, le=1, description="Learning rate of Adam.")


@dataclasses.dataclass(frozen=True)
class ShareSpec:
    config: ShareConfig
    train_patients: tuple[str, ...]
    manifest_hash: str
    metrics: dict[str, float]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **to_dict(self)})


def shares(batch: Batch) -> torch.Tensor:
    return (batch.masks > 0).float().mean((1, 2))


def inputs(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))


class ShareLearner:
    """The line, its optimiser, and the error on this rank's validation slices."""

    stopped = ""
    tags: ClassVar[dict[str, str]] = {"share": "yes"}

    def __init__(self, spec: ShareSpec, judged: Sequence[SliceStore]) -> None:
        self.spec, self.judged = spec, judged
        torch.manual_seed(spec.config.train.seed)
        self.net = nn.Linear(spec.config.preprocess.num_channels, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), spec.config.lr)

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        loss = nn.functional.mse_loss(self.net(inputs(batch.images))[:, 0], shares(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        errors = [
            float((self.net(inputs(batch.images))[:, 0] - shares(batch)).abs().mean())
            for store in self.judged
            for batch in store.stack_batches(0, 64)
        ]
        every = [error for part in gather(errors) for error in part]
        return {"score": 1 - sum(every) / len(every)}

    def finish(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

    def checkpoint(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> Checkpoint:
        spec = dataclasses.replace(self.spec, metrics=metrics)
        return Checkpoint(step=step, spec=spec, weights=self.net.state_dict(), state=state)


class ShareModel:
    def __init__(self, spec: ShareSpec, weights: Mapping[str, torch.Tensor]) -> None:
        self.spec = spec
        self.net = nn.Linear(spec.config.preprocess.num_channels, 1)
        self.net.load_state_dict(dict(weights))

    def predict(self, case: Any) -> float:
        return self.net(torch.from_numpy(case.images).mean((1, 2, 3))[None]).item()


class ShareSearch(Search):
    worst, objective, rate, kept_metrics = -1.0, "score", "lr", ("score",)

    def space(self, config: Any, given: Sequence[str] = ()) -> Any:
        return {"lr": FloatDistribution(1e-3, 1e-1, log=True)}

    def values(self, config: Any) -> dict[str, Any]:
        return {"lr": config.lr}

    def to_report(self, metrics: Mapping[str, float], config: Any) -> dict[str, Any]:
        return {**metrics, "objective": metrics["score"], "percent": int(100 * metrics["progress"])}

    def summarize(self, rows: Sequence[Any]) -> dict[str, Any]:
        return count_rows(rows)

    def describe(self, summary: Mapping[str, Any], mode: str) -> str:
        return f"{summary['num_trials']} trials.\n"

    def version_tags(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return {"score": f"{metrics['score']:.4f}"}


class ShareAnswer(BaseModel):
    task: Literal["share"] = "share"
    version: str


class ShareTask:
    name = "share"
    package_format = FORMAT
    registered_name = "test-share"
    purpose = "Share of tumour in a slice"
    output: Literal["labels", "images"] = "labels"
    config_type = ShareConfig
    recipes: ClassVar[Mapping[str, Callable[[], ShareConfig]]] = {
        "share_line": lambda: ShareConfig(recipe="share_line")
    }
    search: Search = ShareSearch()

    def check(self, config: ShareConfig) -> None: ...

    def complete(self, plan: RunPlan) -> RunPlan:
        return plan

    def cases(self, plan: RunPlan) -> tuple[list[CaseEntry], list[CaseEntry]]:
        return plan.manifest.select("train"), plan.manifest.select("val")

    def prepare(self, plan: RunPlan, ranks: Ranks, fill: Fill, device: torch.device) -> Prepared:
        train, val = self.cases(plan)
        feed, stacks, left_out = load_slices(
            plan, ranks, fill, device, train, val[ranks.rank :: ranks.world_size]
        )
        patients = tuple(sorted({entry.patient_id for entry in train}))
        spec = ShareSpec(plan.config, patients, plan.manifest.hash, {})
        stores = [SliceStore(list(case), plan.config.preprocess) for case in stacks]
        return Prepared(ShareLearner(spec, stores), feed, lambda history: {}, left_out=left_out)

    def parse_spec(self, text: str | bytes) -> ShareSpec:
        return from_dict(ShareSpec, parse_format(text, FORMAT, f"expected {FORMAT}"))

    def load(self, folder: Path, device: str | None = None) -> ShareModel:
        return ShareModel(*read_files(folder, self.parse_spec))

    def export(self, folder: Path) -> Export:
        channels = self.load(folder).spec.config.preprocess.num_channels
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.load(folder).net)
        return Export(net, torch.zeros(1, channels, 96, 96))

    def check_promotable(self, spec: ShareSpec, name: str) -> dict[str, str]:
        return {}

    def evaluate(
        self,
        package: ModelPackage,
        manifest: Any,
        *,
        split: str,
        segmenter: Any = None,
        out: str | None = None,
        metrics: str = "brats2023",
        resample: bool = False,
    ) -> dict[str, Any]:
        entries = select_cases(manifest, {"model": package.spec}, split, labelled=True)
        return {"model": package.uri, "cases": [entry.case_id for entry in entries], "exit_code": 0}

    def compare_to_champion(self, packages: Mapping[str, ModelPackage], manifest: Any) -> Outcome:
        scores = {role: package.spec.metrics["score"] for role, package in packages.items()}
        return compare_scores("score", scores, {"score": scores})

    def routes(self, endpoint: Endpoint) -> Routes:
        router = endpoint.make_router()

        @router.get("/v1/share", response_model=None)
        async def share(mean: float) -> Response:
            net = endpoint.served.model.net
            values = torch.full((1, net.in_features), mean)
            return await endpoint.run(lambda: Response(f"{net(values).item():.6f}"), done="estimated")

        return Routes(router, ShareAnswer, lambda uri, served: ShareAnswer(version=served.version))
