"""The jobs as a user runs them: submitted to a cluster without glioray, data in S3, and their contract."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
import services
from mlflow.tracking import MlflowClient

import leaks
from glioray.engine.on_mlflow.provenance import code_tags
from glioray.errors import GliorayError
from glioray.storage import open_storage

RunJob = Callable[..., subprocess.CompletedProcess[str]]
RunHere = Callable[..., dict[str, Any]]


def last_json(output: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, output[-3000:]
    value: dict[str, Any] = json.loads(lines[-1])
    return value


def test_folders_that_hold_nothing_end_with_one(run_here: RunHere, tmp_path: Path):
    for data, sentence in ((tmp_path, "holds no case"), (tmp_path / "nowhere", "is not a folder")):
        with pytest.raises(GliorayError, match=sentence) as caught:
            run_here("prepare", "--data", str(data), "--out", str(tmp_path / "out"))
        assert caught.value.exit_code == 1


def test_the_chain_from_a_bucket_to_a_champion_on_a_cluster_without_glioray(
    repo: Path,
    run_here: RunHere,
    tmp_path: Path,
    phantom_data: Path,
    bucket: str,
    mlflow_server: str,
    ray_cluster: services.Service,
    request: pytest.FixtureRequest,
):
    data, out = open_storage(f"s3://{bucket}/brats"), f"s3://{bucket}/out"
    for path in sorted(phantom_data.rglob("BraTS2021_9000[015]_*.nii.gz")):
        data.write(path.relative_to(phantom_data).as_posix(), path.read_bytes())
    # A case that was cut off on its way into the bucket.
    whole = next(iter(data.list())).key
    bad = whole.replace("BraTS2021_90000", "BraTS2021_99999")
    for item in list(data.list("BraTS2021_90000/")):
        data.write(item.key.replace("BraTS2021_90000", "BraTS2021_99999"), data.read(item.key))
    data.write(bad, data.read(whole)[:2000])

    # The nodes have the keys of S3; in a job's environment Ray would show them.
    variables = {"GLIORAY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    runtime_env = json.dumps({"env_vars": variables | {"MLFLOW_TRACKING_URI": mlflow_server}})
    # The `ray` that users type, on this Python.
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    shutil.copy(repo / "infra" / "ray.sh", ray)
    (ray.parent / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (ray.parent / "python").chmod(0o755)

    outputs: list[tuple[str, bytes]] = []

    def submit(*command: str, code: int = 0) -> tuple[dict[str, Any], str]:
        done = subprocess.run(
            ["bash", ray, "job", "submit", "--working-dir", ".", "--runtime-env-json", runtime_env, "--", "python", *command],
            cwd=repo, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, done.stdout[-5000:] + done.stderr[-3000:]
        outputs.append((" ".join(command), f"{done.stdout}{done.stderr}".encode()))
        return last_json(done.stdout), done.stdout

    arguments = leaks.Arguments(ray_cluster.pid)
    arguments.start()
    prepared, report = submit(
        "jobs/prepare.py", "--data", data.uri, "--out", f"{out}/manifest", "--report", code=1
    )
    assert prepared["num_cases"] == 3
    assert len(prepared["problems"]) == 1
    assert "BraTS2021_99999" in prepared["problems"][0]
    assert "Traceback" not in report
    page = open_storage(f"{out}/manifest").read("report.html").decode()
    assert page.count("<img") == 5
    assert "BraTS2021_99999" in page
    run = MlflowClient(mlflow_server).get_run(prepared["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["manifest_hash"] == prepared["hash"]
    # The history stays behind, and yet the run knows the commit of the code that was uploaded, and its hash.
    assert run.data.tags.items() >= code_tags().items()

    shared = ["--storage", f"s3://{bucket}/runs"]
    tuned, log = submit(
        "jobs/tune_unet.py", "--data", prepared["manifest"], *shared, "--recipe", "unet_tiny", "--trials", "1",
        "--concurrent", "1", "--max-epochs", "1", "--run-name", "sweep", "--name", bucket,
        "--set", "sample.steps_per_epoch=6",
    )  # fmt: skip
    assert tuned["model"] == f"models:/{bucket}/1"
    assert set(tuned) >= {"run_id", "model", "metrics", "num_slices", "slices_per_s", "trials"}
    assert {"dice_wt", "dice_tc", "dice_et"} <= set(tuned["metrics"])
    assert "winner: trial" in log
    trial = MlflowClient(mlflow_server).get_run(tuned["winner"]["run_id"])
    assert trial.data.tags.items() >= code_tags().items()

    # Of a promotion without data, the driver alone does everything.
    promoted = run_here("promote", "--model", tuned["model"], *shared)
    assert promoted["promoted"] is True
    again = run_here("promote", "--model", tuned["model"], *shared)
    assert again["promoted"] is False

    champion = f"models:/{bucket}@champion"
    judged, _ = submit(
        "jobs/evaluate.py", "--model", champion, "--data", prepared["manifest"], *shared, "--out", out,
        "--metrics", "brats2026",
    )  # fmt: skip
    assert set(judged["cases"]) == {"BraTS2021_90005"}
    assert set(judged["mean"]["wt"]) >= {"dice", "hd95_mm", "sensitivity", "specificity", "precision"}
    assert {"iou", "surface_dice", "volume_error_ml", "lesion_dice", "lesion_hd95_mm"} <= set(
        judged["mean"]["wt"]
    )
    wt = judged["mean"]["wt"]
    assert wt["brats2026_dice"] == pytest.approx(wt["dice"])
    assert wt["brats2026_found"] + wt["brats2026_missed"] >= 1
    assert "## By the rule of BraTS 2026" in open_storage(out).read("evaluation.md").decode()
    assert set(judged["slicewise"]) == {"background", "ncr", "ed", "et", "mean"}
    assert judged["intervals"] == {}  # one patient
    assert "Slice-level metrics inflate scores" in open_storage(out).read("evaluation.md").decode()
    figures = json.loads(open_storage(out).read("evaluation.json"))
    assert figures["cases"] == judged["cases"]
    assert open_storage(out).read("evaluation.csv").decode().startswith("case,region,dice")

    predicted, _ = submit(
        "jobs/predict.py", "--model", champion, "--data", data.uri, *shared, "--out", f"{out}/masks", code=1
    )
    assert len(predicted["masks"]) == 3
    assert set(predicted["failed"]) == {"BraTS2021_99999"}
    (tmp_path / "mask.nii.gz").write_bytes(open_storage(f"{out}/masks").read("BraTS2021_90001_seg.nii.gz"))
    mask = nib.load(tmp_path / "mask.nii.gz")
    image = nib.load(next((phantom_data / "BraTS2021_90001").glob("*_t1.nii.gz")))
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2, 4}

    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    jobs = f"{ray_cluster.address}/api/jobs/"
    assert requests.get(jobs, timeout=30).status_code == 401
    shown = requests.get(jobs, timeout=30, headers={"Authorization": f"Bearer {token}"})
    places = {
        "the jobs' outputs": iter(outputs),
        "the job server": iter([(jobs, shown.content)]),
        "arguments": arguments.end(),
        "Ray's files": leaks.read_folder(ray_cluster.scratch[0]),
        "the storage": leaks.read_objects(f"s3://{bucket}"),
        "MLflow": leaks.read_folder(request.getfixturevalue("_mlflow_service").log.parent),
    }
    secrets = {"the key of S3": os.environ["AWS_SECRET_ACCESS_KEY"], "the cluster's token": token}
    assert leaks.find_secrets(places, secrets, named=bucket) == []


def test_a_local_run_needs_neither_cluster_nor_mlflow_server(
    run_job: RunJob, run_here: RunHere, tmp_path: Path, phantom_data: Path, monkeypatch: pytest.MonkeyPatch
):
    storage, data = str(tmp_path / "runs"), tmp_path / "data"
    data.mkdir()
    for name in ("BraTS2021_90000", "BraTS2021_90001", "BraTS2021_90005"):
        (data / name).symlink_to(phantom_data / name)
    done = run_job(
        "jobs/train_unet.py", "--data", str(data), "--storage", storage, "--recipe", "unet_tiny",
        "--run-name", "alone", "--max-epochs", "1", "--set", "sample.steps_per_epoch=4",
        env={"HOME": str(tmp_path), "GLIORAY_CACHE": str(tmp_path / "cache"), "MLFLOW_TRACKING_URI": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert answer["model"] == answer["checkpoint"] == f"{storage}/alone"
    assert (tmp_path / "runs" / "mlflow.db").is_file()

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def evaluate(data: Path) -> dict[str, Any]:
        return run_here("evaluate", "--data", str(data), "--storage", storage, "--model", answer["model"])

    assert set(evaluate(data)["cases"]) == {"BraTS2021_90005"}
    # What it was trained on may not evaluate it unless one insists.
    train = tmp_path / "train"
    train.mkdir()
    (train / "BraTS2021_90000").symlink_to(phantom_data / "BraTS2021_90000")
    with pytest.raises(GliorayError, match="is new to every model") as caught:
        evaluate(train)
    assert caught.value.exit_code == 1
