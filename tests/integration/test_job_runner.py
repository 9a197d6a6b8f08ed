"""Jobs of the endpoint on a real Ray: in actors that outlive who starts them, and end with their work."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import ray
import torch
from serve.job_runner import RayLauncher
from serve.jobs import Job, JobRequest, JobStore

from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.nifti import read_volume
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.recipes import unet_tiny

pytestmark = pytest.mark.usefixtures("ray_local")

_DEADLINE_S = 300


@pytest.fixture
def model(tmp_path: Path, phantom_data: Path) -> str:
    storage = open_storage(phantom_data)
    case = load_case(storage, discover_cases(storage)[0][0])
    spec = ModelSpec(config=unet_tiny(), out_channels=3, spacing_mm=case.spacing_mm, manifest_hash="0" * 12)
    torch.manual_seed(0)
    write_package(tmp_path / "model", spec, spec.build().state_dict())
    return str(tmp_path / "model")


@pytest.fixture
def root(tmp_path: Path, phantom_data: Path) -> str:
    """A folder that jobs may use, with the phantoms in `data`."""
    shutil.copytree(phantom_data, tmp_path / "root" / "data")
    return str(tmp_path / "root")


def _wait(store: JobStore, root: str, job_id: str, *states: str) -> Job:
    deadline = time.monotonic() + _DEADLINE_S
    while (job := store.load(root, job_id)).state not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return job


def _wait_for_end(launcher: RayLauncher) -> None:
    deadline = time.monotonic() + 60
    while launcher.list_running():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_ends_with_its_masks_also_where_its_process_dies(
    root: str, phantom_data: Path, model: str
) -> None:
    store = JobStore([root])
    launcher = RayLauncher(store.roots, None)
    request = JobRequest(data=f"{root}/data", out=f"{root}/masks", labels="brats-et3")
    job, _ = store.create(request, model)
    launcher.start(root, job.id)
    assert launcher.list_running() == [job.id]
    _wait(store, root, job.id, "running")
    actor = ray.get_actor(job.id, namespace="glioray-jobs")
    ray.kill(actor, no_restart=False)
    ended = _wait(store, root, job.id, "done", "failed")
    storage = open_storage(phantom_data)
    cases = discover_cases(storage)[0]
    assert (ended.state, ended.num_done, ended.num_cases, ended.failed) == (
        "done",
        len(cases),
        len(cases),
        {},
    )
    predictor = Predictor.load(Path(model), device="cpu")
    case = load_case(storage, cases[0])
    mask = read_volume((Path(root) / "masks" / f"{case.case_id}_seg.nii.gz").read_bytes(), name="mask")
    # Another number of threads adds up in another order: a few voxels on the border may differ.
    assert abs(int((mask.array > 0).sum()) - int((predictor.predict(case) > 0).sum())) <= 20
    _wait_for_end(launcher)


def test_a_job_is_cancelled(root: str, model: str) -> None:
    store = JobStore([root])
    launcher = RayLauncher(store.roots, None)
    job, _ = store.create(JobRequest(data=f"{root}/data"), model)
    launcher.start(root, job.id)
    _wait(store, root, job.id, "running")
    store.cancel(root, job.id)
    launcher.stop(job.id)
    assert store.load(root, job.id).state == "cancelled"
    _wait_for_end(launcher)
    assert store.load(root, job.id).state == "cancelled"
    launcher.stop(job.id)
