"""The contract of every task's comparison, on runs of two steps, and which runs are planned and repeated. No Ray."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from glioray.cases.conventions import CONVENTIONS
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.manifest import CaseEntry, Manifest, build_manifest, check_case
from glioray.cases.phantom import write_phantoms
from glioray.config import PreprocessConfig, with_settings
from glioray.engine.collectives import Ranks
from glioray.engine.comparison import (
    RESULT_FILE,
    ComparisonPlan,
    ComparisonRun,
    RunResult,
    plan_runs,
    slug,
)
from glioray.engine.loop import fit
from glioray.engine.on_ray import compare
from glioray.engine.on_ray.resources import WorkerResources
from glioray.engine.run import HISTORY_FILE, RunPlan
from glioray.errors import CaseError, DataError, DivergenceError, StorageError
from glioray.slices.cache import CacheConfig, SliceCache
from glioray.slices.preprocess import preprocess
from glioray.storage import open_storage
from glioray.tasks import TASKS, load_task

pytestmark = pytest.mark.contracts

WORKER = WorkerResources(num_cpus=1.0, num_gpus=0.0, num_threads=1)


def tiny_config(task: str) -> Any:
    """A tiny recipe of the task, shortened to two epochs of one step."""
    recipe = next(build for name, build in load_task(task).recipes.items() if "tiny" in name)
    settings = {"train.max_epochs": 2, "train.minutes": None, "sample.steps_per_epoch": 1}
    return with_settings(recipe(), {**settings, "train.batch_size": 4, "train.precision": "fp32"})


def run_plan(task: str, folder: Path, manifest: Manifest | None = None, **more: Any) -> RunPlan:
    nothing = Manifest(data="file:///none", cases=(), problems=(), splits={}, folds=(), seed=0)
    return RunPlan(
        task=load_task(task),
        config=tiny_config(task),
        manifest=manifest or nothing,
        storage=str(folder),
        run_name="duel",
        tracking_uri="sqlite:///none",
        experiment="e",
        **more,
    )


def fill(
    data: str, entries: Sequence[CaseEntry], config: PreprocessConfig, cache: CacheConfig
) -> dict[str, CaseError]:
    slices = SliceCache(cache, config)
    for entry in entries:
        if not slices.has(entry):
            assert entry.convention is not None
            case = load_case(open_storage(data), entry.files, convention=CONVENTIONS[entry.convention])
            slices.put(entry, preprocess(case, config))
    return {}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    storage = open_storage(tmp_path_factory.mktemp("cases"))
    write_phantoms(storage, num_cases=4, shape=(64, 64, 24))
    cases, _ = discover_cases(storage)
    checked = [check_case(storage, files) for files in cases]
    return build_manifest(storage.uri, checked, ratios=(0.5, 0.5, 0), num_folds=2)


def train(run: ComparisonRun) -> dict[str, Any]:
    plan = run.plan.task.complete(run.plan)
    prepared = plan.task.prepare(plan, Ranks(), fill, torch.device("cpu"))
    history: list[dict[str, float]] = []
    storage = open_storage(plan.storage)
    metrics = fit(prepared.learner, prepared.feed, plan.config.train, storage, Ranks(), history.append)
    storage.write(HISTORY_FILE, json.dumps(history).encode())
    return {"metrics": metrics}


@pytest.fixture(scope="module", params=TASKS)
def results(
    request: pytest.FixtureRequest, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[RunResult]]:
    """The task, and results of the entrants "one|a" and "two", which have a model, and of "three", which failed."""
    base = run_plan(
        request.param,
        tmp_path_factory.mktemp("comparison"),
        manifest,
        cache=CacheConfig(folder=str(tmp_path_factory.mktemp("slices"))),
    )
    entrants = dict.fromkeys(("one|a", "two", "three"), base.config)
    plan = ComparisonPlan(base=base, entrants=entrants, seeds=(0,), num_concurrent=1, budget="2 steps")
    found, judged = [], {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for run in plan_runs(plan, "parent"):
        if run.label == "three":
            found.append(run.failed("the loss became nan", again=False))
            continue
        key = (run.fold, run.seed)
        if key not in judged:  # equal configs would give equal models
            judged[key] = base.task.comparison.judge(run.plan, train(run), fill)
            source = run.plan.storage
        # Its pictures are where the first entrant of that fold left them.
        found.append({**run.identity(), **judged[key], "storage": source})
    torch.set_num_threads(threads)
    return request.param, found


class TestEveryComparison:
    """What the engine relies on."""

    def test_results_are_json_with_a_state(self, results: tuple[str, list[RunResult]]):
        task, found = results
        comparison = load_task(task).comparison
        assert json.loads(json.dumps(found)) == found
        for result in found:
            if result["state"] != "failed":
                assert result["state"] in {"complete", *comparison.states}
                assert bool(result["reason"]) == (result["state"] != "complete")
                assert comparison.summarize(result)

    def test_ranking_has_every_entrant_once_and_failed_ones_last(self, results: tuple[str, list[RunResult]]):
        task, found = results
        comparison = load_task(task).comparison
        standings = comparison.rank(found)
        assert [row.rank for row in standings] == [1, 2, 3]
        assert {row.label for row in standings} == {"one|a", "two", "three"}
        assert standings[-1].label == "three"
        assert standings[-1].reason == "the loss became nan"
        for row in standings:
            assert json.loads(json.dumps(row.to_dict()))["label"] == row.label
        shuffled = random.Random(0).sample(found, len(found))
        assert {row.label: row.num_runs for row in comparison.rank(shuffled)} == {
            row.label: row.num_runs for row in standings
        }
        assert comparison.rank(shuffled)[-1].label == "three"

    def test_only_an_entrant_that_completed_wins(self, results: tuple[str, list[RunResult]]):
        task, found = results
        comparison = load_task(task).comparison
        complete = [{**result, "state": "complete", "reason": ""} for result in found[:2] + found[3:5]]
        standings = comparison.rank(complete)
        winner = comparison.winner(standings)
        assert winner == standings[0]
        assert all(isinstance(value, float) for value in comparison.winner_metrics(winner).values())
        assert comparison.winner([]) is None
        failed = [result for result in found if result["label"] == "three"]
        one = [*complete[:1], {**failed[0], "label": complete[0]["label"]}]
        assert comparison.winner(comparison.rank(one)) is None

    def test_interpretation_is_a_paragraph_with_budget_and_failures(
        self, results: tuple[str, list[RunResult]]
    ):
        task, found = results
        comparison = load_task(task).comparison
        complete = [
            result if result["state"] == "failed" else {**result, "state": "complete", "reason": ""}
            for result in found
        ]
        text = comparison.interpret(comparison.rank(complete), complete, "2 steps")
        assert text.endswith(".\n")
        assert text.count("\n") == 1
        for part in ("2 steps", "one|a", "two", "three", "the loss became nan"):
            assert part in text

    def test_tables_have_a_row_an_entrant(self, results: tuple[str, list[RunResult]]):
        task, found = results
        comparison = load_task(task).comparison
        standings = comparison.rank(found)
        for table in (comparison.text_table(standings), comparison.value_table(standings)):
            assert [row[:2] for row in table.rows] == [[row.rank, row.label] for row in standings]
            assert len(set(table.columns)) == len(table.columns)

    def test_figures_have_names_of_their_own_and_can_be_drawn(self, results: tuple[str, list[RunResult]]):
        task, found = results
        comparison = load_task(task).comparison
        names = []
        for name, figure in comparison.figures(comparison.rank(found), found):
            names.append(name)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=30)
            assert buffer.getvalue().startswith(b"\x89PNG")
        assert names
        assert len(set(names)) == len(names)
        assert all(name.endswith(".png") and "|" not in name for name in names)

    def test_documents_are_json_and_hold_the_results(self, results: tuple[str, list[RunResult]]):
        task, found = results
        comparison = load_task(task).comparison
        documents = comparison.documents(comparison.rank(found), "text", found)
        assert any(json.dumps(found) in json.dumps(value) for value in documents.values())

    def test_recipes_can_be_compared(self, results: tuple[str, list[RunResult]]):
        load_task(results[0]).comparison.check(tiny_config(results[0]))


@pytest.mark.parametrize("task", TASKS)
class TestPlannedRuns:
    def plan(self, task: str, folder: Path, manifest: Manifest, **settings: Any) -> ComparisonPlan:
        base = run_plan(task, folder, manifest)
        entrants = {"A b": with_settings(base.config, settings), "B": base.config}
        return ComparisonPlan(base=base, entrants=entrants, seeds=(3, 4), num_concurrent=1, budget="b")

    def test_each_entrant_runs_with_each_seed_on_each_fold(
        self, task: str, tmp_path: Path, manifest: Manifest
    ):
        runs = plan_runs(self.plan(task, tmp_path, manifest), "parent")
        folds = [0, 1] if load_task(task).comparison.cross_validates else [None]
        assert [(run.fold, run.seed, run.label) for run in runs] == [
            (fold, seed, label) for fold in folds for seed in (3, 4) for label in ("A b", "B")
        ]
        for run in runs:
            assert run.plan.config.train.seed == run.seed
            assert (run.plan.parent_run_id, run.plan.kind, run.plan.log_model) == ("parent", "trial", False)
            assert run.plan.tags["glioray.entrant"] == run.label
            assert run.plan.tags.get("glioray.fold") == (None if run.fold is None else str(run.fold))
            assert ("fold" in run.plan.run_name) == (run.fold is not None)
            assert Path(run.plan.storage).name.startswith(slug(run.label) + "-")
        assert slug("A b") == "A-b"

    def test_a_run_is_found_again_by_its_settings_and_its_data(
        self, task: str, tmp_path: Path, manifest: Manifest
    ):
        def storages(manifest: Manifest, **settings: Any) -> list[str]:
            runs = plan_runs(self.plan(task, tmp_path, manifest, **settings), "parent")
            return [run.plan.storage for run in runs]

        before = storages(manifest)
        assert storages(manifest) == before
        assert len(set(before)) == len(before)
        longer = storages(manifest, **{"train.max_epochs": 99})
        same = [one == other for one, other in zip(before, longer, strict=True)]
        assert same == [False, True] * (len(before) // 2)
        other = storages(dataclasses.replace(manifest, cases=manifest.cases[:3]))
        assert not set(other) & set(before)

    def test_results_of_earlier_versions_are_read(self, task: str, tmp_path: Path, manifest: Manifest):
        run = plan_runs(self.plan(task, tmp_path, manifest), "parent")[0]
        assert run.load_result() is None
        earlier = {"label": "a former label", "seed": 9, "storage": "s3://elsewhere", "state": "complete"}
        open_storage(run.plan.storage).write("play.json", json.dumps({**earlier, "history": []}).encode())
        assert run.load_result() == {"state": "complete", "history": [], **run.identity()}

    @pytest.mark.parametrize(
        ("error", "final"),
        [
            (DivergenceError("the loss became nan"), True),
            (DataError("nothing to train on"), False),
            (StorageError("the bucket is away"), False),
        ],
        ids=lambda value: type(value).__name__,
    )
    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_only_a_divergence_is_final(
        self,
        num_workers: int,
        error: Exception,
        final: bool,
        task: str,
        tmp_path: Path,
        manifest: Manifest,
        monkeypatch: pytest.MonkeyPatch,
    ):
        def fail(*_: Any, **__: Any) -> dict[str, Any]:
            raise error

        monkeypatch.setattr(compare, "run_training" if num_workers > 1 else "train_measured", fail)
        plan = self.plan(task, tmp_path, manifest, **{"train.num_workers": num_workers})
        run = plan_runs(plan, "parent")[0]
        result = compare.execute_run(run, WORKER)
        assert (result["state"], result["reason"], result["again"]) == ("failed", str(error), not final)
        assert open_storage(run.plan.storage).exists(RESULT_FILE) is final
        assert (run.load_result() == result) is final

    def test_resumed_runs_get_no_more_resources_than_the_others_had(
        self, task: str, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
    ):
        class RequestedError(Exception):
            pass

        def worker_resources(num_workers: int, asked: Any) -> WorkerResources:
            raise RequestedError(num_workers)

        monkeypatch.setattr(compare, "worker_resources", worker_resources)
        runs = plan_runs(self.plan(task, tmp_path, manifest), "parent")
        for run in runs[:-1]:
            run.save_result({"state": "complete", "label": run.label})
        folder = str(tmp_path / "tune")
        with pytest.raises(RequestedError, match=r"^2$"):
            compare.execute_runs(runs, 2, folder=folder)
        with pytest.raises(RequestedError, match=rf"^{len(runs)}$"):
            compare.execute_runs(runs, 80, folder=folder)
        runs[-1].save_result({"state": "complete"})
        # Nothing is missing, so the cluster is not asked for anything.
        assert [result["storage"] for result in compare.execute_runs(runs, 2, folder=folder)] == [
            run.plan.storage for run in runs
        ]


def test_unexpected_errors_are_reported_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> dict[str, Any]:
        raise AttributeError("no such thing")

    monkeypatch.setattr(compare, "train_measured", fail)
    run = ComparisonRun(label="a", seed=0, plan=run_plan(next(iter(TASKS)), tmp_path))
    outcome = compare._execute_trial({"number": 0}, runs=[run], workers=WORKER)
    assert "(AttributeError: no such thing)" in outcome["reason"]
    assert run.load_result() is None
