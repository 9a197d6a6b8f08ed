"""A prediction of a folder that is killed, and the same again."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.config import override
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny

# Runs a job whose worker, when so many masks are done, kills the process group of the job's driver.
_DIES = """
import os, runpy, signal, sys, time
from glob import glob
from glioray.tasks.segmentation import prediction

group, num_masks, pattern = os.getpgid(0), int(sys.argv[1]), sys.argv[2]
predict_case = prediction.predict_case

def die(*args):
    if len(glob(pattern)) == num_masks:
        os.killpg(group, signal.SIGKILL)
        time.sleep(600)
    return predict_case(*args)

prediction.predict_case = die
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Where the job has its Ray; whatever still runs there ends with the test."""
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="glp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        for process in psutil.process_iter():
            try:
                if folder in " ".join(process.cmdline()):
                    process.kill()
            except psutil.Error:
                continue


@pytest.fixture
def model(phantom_data: Path, tmp_path: Path) -> Path:
    case = load_case(open_storage(phantom_data), discover_cases(open_storage(phantom_data))[0][0])
    # Else each process chooses a precision for itself.
    config = override(unet_tiny(), **{"train.precision": "fp32"})
    spec = ModelSpec(config=config, out_channels=3, spacing_mm=case.spacing_mm, manifest_hash="0" * 12)
    torch.manual_seed(0)
    write_package(tmp_path / "model", spec, spec.build().state_dict())
    return tmp_path / "model"


def test_a_job_killed_at_half_does_only_the_rest(
    repo: Path,
    ray_local: None,
    sessions: Path,
    model: Path,
    tmp_path: Path,
    phantom_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    num_cases = len(list(phantom_data.glob("BraTS2021_*")))
    half, out, job = num_cases // 2, tmp_path / "out", str(repo / "jobs" / "predict.py")
    flags = ["--model", str(model), "--data", str(phantom_data), "--storage", str(tmp_path / "runs"), "--out"]
    (tmp_path / "dies.py").write_text(_DIES)
    # With as many CPUs as Ray has here, so that the same arithmetic makes all masks.
    cpus = json.dumps({"CPU": ray.cluster_resources()["CPU"]})
    own = {"RAY_TMPDIR": str(sessions), "RAY_OVERRIDE_RESOURCES": cpus, "PYTHONPATH": str(repo / "platform")}
    # In a process group of its own. A file, since what a killed job leaves behind may keep a pipe open.
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "dies.py"), str(half), f"{out}/*_seg.nii.gz", job, *flags, str(out)],
            env={**os.environ, **own},
            stdout=log, stderr=subprocess.STDOUT, timeout=600, start_new_session=True,
        )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*_seg.nii.gz")}
    assert len(stamps) == half

    # The same again in this process and its Ray, which saves the start of both.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    caplog.set_level("INFO", logger="glioray")
    answer = runpy.run_path(job)["job"].answer([*flags, str(out)])
    assert answer.get("exit_code", 0) == 0
    assert f"{half} of {num_cases} masks are there already" in caplog.text
    assert f"working on {num_cases - half} cases: done" in caplog.text
    masks = answer["masks"]
    assert len(masks) == num_cases
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps

    whole = runpy.run_path(job)["job"].answer([*flags, str(tmp_path / "whole")])
    assert whole.get("exit_code", 0) == 0
    for case_id, mask in masks.items():
        assert Path(mask).read_bytes() == Path(whole["masks"][case_id]).read_bytes()
