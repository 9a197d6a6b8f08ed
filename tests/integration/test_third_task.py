"""A third task goes through the engines as they are: trained, searched, registered, promoted, evaluated and served."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glioray import tasks
from glioray.config import override
from glioray.engine.on_mlflow.registry import champion, set_champion
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.promotion import compare_to_champion
from glioray.engine.run import RunPlan
from glioray.engine.search import SweepPlan

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def share_plan(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPlan]:
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setitem(tasks.TASKS, "share", "third_task:ShareTask")
    task = tasks.load_task("share")
    yield dataclasses.replace(plan, task=task, config=task.recipes["share_line"]())
    sys.modules.pop("third_task")


def test_a_third_task_needs_its_own_files_and_one_line(
    share_plan: RunPlan, tmp_path: Path, train_here: Callable[..., dict[str, Any]]
) -> None:
    slower = override(share_plan.config, lr=0.002)
    trained = train_here(dataclasses.replace(share_plan, config=slower), log_model=True)
    assert 0 < trained["metrics"]["score"] <= 1
    assert trained["metrics"]["epoch"] == 2

    sweep = dataclasses.replace(
        share_plan, storage=str(tmp_path / "sweep"), run_name=f"{tmp_path.name}-sweep"
    )
    found = run_sweep(SweepPlan(base=sweep, num_trials=1, num_concurrent=1, model_name="test-share"))
    assert [trial["state"] for trial in found["trials"]] == ["complete"]
    assert found["model"] == "models:/test-share/1"
    assert found["trials"][0]["objective"] == found["metrics"]["score"]

    packages = {"candidate": tasks.open_package(found["model"], tmp_path / "candidate")}
    assert packages["candidate"].task.name == "share"
    assert compare_to_champion(packages, None).wins
    set_champion("test-share", "1")
    assert champion("test-share") == "1"
    packages["champion"] = tasks.open_package(trained["model"], tmp_path / "champion")
    outcome = compare_to_champion(packages, None)
    assert outcome.wins == (found["metrics"]["score"] > trained["metrics"]["score"])

    package = packages["candidate"]
    answer = package.task.evaluate(package, share_plan.manifest, split="unseen")
    assert set(answer["cases"]) == {entry.case_id for entry in share_plan.manifest.select("val")}
    assert _served(package.folder, found["model"], 0.25) == pytest.approx(_line(package, 0.25), abs=1e-5)


def _line(package: tasks.ModelPackage, mean: float) -> float:
    net = package.task.load(package.folder).net
    return ((net.weight * mean).sum() + net.bias).item()


def _served(folder: Path, uri: str, mean: float) -> float:
    with warnings.catch_warnings():
        # Starlette's client recommends another package for what httpx does.
        warnings.simplefilter("ignore")
        from fastapi.testclient import TestClient
    from serve.api import make_api
    from serve.schemas import Settings
    from serve.watch import ModelWatch

    watch: ModelWatch[Any] = ModelWatch(uri, tasks.load_task("share").load, poll_s=3600, device="cpu")
    watch.refresh()
    settings = Settings(model=uri, superres=None, models={"share": uri})
    client = TestClient(make_api(settings, {"share": watch}))
    answer = client.get("/v1/share", params={"mean": mean})
    assert answer.status_code == 200, answer.text
    return float(answer.text)
