"""A prediction of a folder that is killed, and the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny

Start = Callable[..., tuple[int, str, str]]

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
    """Where jobs have their Ray; whatever still runs there ends with the test."""
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
def start(repo: Path, sessions: Path, phantom_data: Path, tmp_path: Path) -> Start:
    """Runs jobs/predict.py on the phantoms in a process group of its own; its exit code, stdout and stderr."""
    case = load_case(open_storage(phantom_data), discover_cases(open_storage(phantom_data))[0][0])
    spec = ModelSpec(config=unet_tiny(), out_channels=3, spacing_mm=case.spacing_mm, manifest_hash="0" * 12)
    torch.manual_seed(0)
    write_package(tmp_path / "model", spec, spec.build().state_dict())

    def run(out: Path, *before: str) -> tuple[int, str, str]:
        command = [
            sys.executable, *before, str(repo / "jobs" / "predict.py"), "--model", str(tmp_path / "model"),
            "--data", str(phantom_data), "--out", str(out), "--storage", str(tmp_path / "runs"),
        ]  # fmt: skip
        env = {**os.environ, "RAY_TMPDIR": str(sessions), "PYTHONPATH": str(repo / "platform")}
        # Files, since what a killed job leaves behind may keep a pipe open.
        with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
            done = subprocess.run(
                command, env=env, stdout=stdout, stderr=stderr, timeout=600, start_new_session=True
            )
        return done.returncode, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()

    return run


def test_a_job_killed_at_half_does_only_the_rest(start: Start, tmp_path: Path, phantom_data: Path):
    num_cases = len(list(phantom_data.glob("BraTS2021_*")))
    half, out = num_cases // 2, tmp_path / "out"
    (tmp_path / "dies.py").write_text(_DIES)
    code, _, log = start(out, str(tmp_path / "dies.py"), str(half), f"{out}/*_seg.nii.gz")
    assert code == -signal.SIGKILL, log[-3000:]
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*_seg.nii.gz")}
    assert len(stamps) == half

    code, answer, log = start(out)
    assert code == 0, log[-3000:]
    assert f"{half} of {num_cases} masks are there already" in log
    assert f"working on {num_cases - half} cases: done" in log
    masks = json.loads(answer.splitlines()[-1])["masks"]
    assert len(masks) == num_cases
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps

    code, _, log = start(tmp_path / "whole")
    assert code == 0, log[-3000:]
    for case_id, mask in masks.items():
        expected = tmp_path / "whole" / f"{case_id}_seg.nii.gz"
        assert Path(mask).read_bytes() == expected.read_bytes()
