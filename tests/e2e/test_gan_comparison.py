"""Super-resolution GANs compared as a user compares them: one that learns and one whose rates make it collapse."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

RunHere = Callable[..., dict[str, Any]]

WILD = "mri_tiny:optim_g.lr=0.3,optim_d.lr=0.3"


def test_entrants_are_compared_on_one_ground(
    run_here: RunHere,
    phantom_manifest: str,
    tmp_path: Path,
    mlflow_server: str,
    caplog: pytest.LogCaptureFixture,
):
    out = tmp_path / "out"
    caplog.set_level("INFO", logger="glioray")

    def run() -> dict[str, Any]:
        return run_here(
            "compare_gan", "--data", phantom_manifest, "--storage", str(tmp_path / "runs"), "--out", str(out),
            "--run-name", "duel", "--recipe", "mri_tiny", "--entrants", f"mri_tiny,{WILD}", "--seeds", "2",
            "--slices-each", "160", "--concurrent", "1", "--set", "train.num_validations=2",
            "--set", "collapse.grace=0", "--set", "collapse.patience=1",
            "--set", "generator.options.width=4", "--set", "discriminator.options.width=4",
        )  # fmt: skip

    result = run()
    assert "exit_code" not in result
    tame, wild = result["standings"]
    assert (tame["label"], wild["label"]) == ("mri_tiny", WILD)
    assert result["winner"] == "mri_tiny"
    assert (tame["num_runs"], tame["num_collapsed"], tame["num_slices"]) == (2, 0, 160)
    assert wild["num_collapsed"] + wild["num_failed"] == 2
    assert tame["num_parameters"] > 0 < tame["num_critic_parameters"]
    assert tame["figures"]["quality"]["low"] <= tame["figures"]["quality"]["mean"]
    assert tame["figures"]["worst_collapse"]["high"] < 0.5
    assert wild["reason"]
    assert f"{WILD}: 2 of 2 runs" in result["reading"]

    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names >= {"comparison.md", "comparison.csv", "comparison.json"}
    assert names >= {"convergence_num_slices.png", "convergence_minutes.png"}
    assert sum(name.startswith("panels/") for name in names) == 5
    assert {Path(uri).relative_to(out).as_posix() for uri in result["files"]} == names
    (first, _) = csv.DictReader(io.StringIO((out / "comparison.csv").read_text()))
    assert float(first["quality"]) == tame["figures"]["quality"]["mean"]
    client = MlflowClient(mlflow_server)
    parent = client.get_run(result["run_id"])
    assert (parent.data.tags["glioray.kind"], parent.data.tags["glioray.winner"]) == (
        "comparison",
        "mri_tiny",
    )
    logged = {item.path for item in client.list_artifacts(result["run_id"])}
    assert logged >= {"comparison.md", "convergence_minutes.png", "panels"}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    )
    assert len(children) == 4

    again = run()
    assert "4 of 4 runs are there already" in caplog.text
    assert again == result
