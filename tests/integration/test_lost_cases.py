"""Cases that were good when the manifest was made and cannot be decoded when a run starts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from glioray.config import override
from glioray.engine.on_ray.agreement import PRECISION_FILE
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.on_ray.train import run_training
from glioray.engine.run import LEFT_OUT_TAG, RunPlan
from glioray.engine.search import SweepPlan
from glioray.errors import DataError
from glioray.slices.cache import CacheConfig

pytestmark = pytest.mark.usefixtures("ray_local")

FIRST, SECOND, VALIDATION = "BraTS2021_90000", "BraTS2021_90001", "BraTS2021_90005"


@pytest.fixture
def copied(plan: RunPlan, phantom_data: Path, tmp_path: Path) -> RunPlan:
    """The plan on a copy of the data, with a cache that has none of it."""
    shutil.copytree(phantom_data, tmp_path / "data")
    return dataclasses.replace(
        plan,
        manifest=dataclasses.replace(plan.manifest, data=str(tmp_path / "data")),
        cache=CacheConfig(folder=str(tmp_path / "slices")),
        log_model=False,
    )


def cut(plan: RunPlan, case_id: str) -> Path:
    """Cut a file of a case short; returns it."""
    path = Path(plan.manifest.data) / case_id / f"{case_id}_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    return path


def test_a_trial_of_two_ranks_goes_on_without_a_case(copied: RunPlan, mlflow_server: str):
    cut(copied, FIRST)
    settings = {"train.num_workers": 2, "train.max_epochs": 1, "train.precision": "auto"}
    config = override(copied.config, **settings)
    base = dataclasses.replace(copied, kind="sweep", config=config)
    result = run_sweep(SweepPlan(base=base, num_trials=1, num_concurrent=1, model_name=f"n-{base.run_name}"))
    (trial,) = result["trials"]
    assert trial["state"] == "complete"
    decided = json.loads((Path(base.storage) / PRECISION_FILE).read_text())
    assert decided.keys() == {"training", "prediction"}
    assert result["metrics"]["num_slices"] == 4 * config.train.batch_size
    ranks = json.loads((Path(base.storage) / "trials" / trial["trial"] / "result.json").read_text())
    assert set(ranks["left_out"]) == {FIRST}
    assert f"{FIRST}_flair.nii.gz: has changed" in ranks["left_out"][FIRST]
    for run_id in (result["run_id"], result["winner"]["run_id"]):
        run = MlflowClient(mlflow_server).get_run(run_id)
        assert run.info.status == "FINISHED"
        assert FIRST in run.data.tags[LEFT_OUT_TAG]


def test_a_run_goes_on_without_a_case_and_with_it_once_it_is_back(
    copied: RunPlan, mlflow_server: str, train_here: Callable[..., dict[str, Any]], phantom_data: Path
):
    path = cut(copied, FIRST)
    result = train_here(copied)
    assert set(result["left_out"]) == {FIRST}
    assert FIRST in MlflowClient(mlflow_server).get_run(result["run_id"]).data.tags[LEFT_OUT_TAG]

    shutil.copy(phantom_data / FIRST / path.name, path)
    longer = dataclasses.replace(copied, config=override(copied.config, **{"train.max_epochs": 3}))
    resumed = train_here(longer)
    assert (resumed["run_id"], resumed["metrics"]["epoch"]) == (result["run_id"], 3)
    assert "left_out" not in resumed
    assert MlflowClient(mlflow_server).get_run(result["run_id"]).data.tags[LEFT_OUT_TAG] == "none"


def test_too_many_lost_cases_end_the_run_before_a_step(
    copied: RunPlan, train_here: Callable[..., dict[str, Any]]
):
    cut(copied, FIRST)
    shutil.rmtree(Path(copied.manifest.data) / SECOND)
    sentence = (
        rf"^2 of 6 cases can no longer be decoded, and train.max_lost_cases is 0.05, which allows 1; .*"
        rf"case {SECOND}: {SECOND}/.*: is gone since the manifest"
    )
    for train in (run_training, train_here):
        with pytest.raises(DataError, match=sentence):
            train(copied)
    assert not (Path(copied.storage) / "latest.json").exists()


def test_a_run_does_not_lose_all_that_it_validates_on(copied: RunPlan):
    cut(copied, VALIDATION)
    with pytest.raises(DataError, match=r"1 of 6 cases .* all that the run would validate on"):
        run_training(copied)
