"""What a champion may be replaced by, without a registry: the job's own judgement of two descriptions."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glioray.config import override
from glioray.errors import UsageError
from glioray.inference.package import ModelSpec
from glioray.recipes import unet_tiny


def _spec(dice: float, *, fitted: bool) -> ModelSpec:
    return ModelSpec(
        config=override(unet_tiny(), **{"postprocess.fit_thresholds": fitted}),
        out_channels=3,
        spacing_mm=(1.0, 1.0, 1.0),
        manifest_hash="m",
        val_cases={"c1": {"wt": dice}},
    )


@pytest.fixture
def promote(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The job, of two models of one name: version 2, the candidate, and version 1, the champion where there is one."""

    def promote(candidate: ModelSpec, present: ModelSpec | None) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["promote.py", "--storage", str(tmp_path), "--dry-run"])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        monkeypatch.setattr("glioray.cluster.log_to_stderr", lambda: None)
        monkeypatch.setattr("glioray.sources.registered_version", lambda args: ("net", "2"))
        monkeypatch.setattr(
            "glioray.tracking.registry.champion", lambda name: None if present is None else "1"
        )
        specs = {"models:/net/2": candidate, "models:/net/1": present}
        monkeypatch.setattr("glioray.sources.open_package", lambda uri, folder: (folder, specs[uri]))
        answer: dict[str, Any] = runpy.run_path(str(repo / "jobs" / "promote.py"))["main"]()
        return answer

    return promote


def test_the_better_of_two_on_the_same_cases(promote: Callable[..., dict[str, Any]]):
    assert (
        "mean Dice 0.8000 beats 0.7000"
        in promote(_spec(0.8, fitted=False), _spec(0.7, fitted=False))["reason"]
    )
    assert "the champion stays" in promote(_spec(0.7, fitted=False), _spec(0.7, fitted=False))["reason"]


@pytest.mark.parametrize(("candidate", "present"), [(True, False), (False, True), (True, True)])
def test_dice_on_cases_that_thresholds_were_fitted_on_does_not_count(
    promote: Callable[..., dict[str, Any]], candidate: bool, present: bool
):
    with pytest.raises(
        UsageError, match=r"thresholds of the (candidate|champion) were fitted on .*give --data"
    ):
        promote(_spec(0.8, fitted=candidate), _spec(0.7, fitted=present))


def test_the_first_champion_has_nobody_to_beat(promote: Callable[..., dict[str, Any]]):
    assert promote(_spec(0.8, fitted=True), None)["reason"] == "there was no champion"
