"""The endpoint as a pipeline uses it: with a key, by the client, and by a job, on a Ray of this machine alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import services
import torch

import glioray
from glioray.cases.layouts import discover_cases
from glioray.cases.load import load_case
from glioray.cases.nifti import read_volume
from glioray.config import override
from glioray.errors import EndpointError
from glioray.storage import open_storage
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.recipes import unet_tiny

DEADLINE_S = 240


@dataclass
class Started:
    """An endpoint's address, a key for it, and its process."""

    url: str
    key: str
    process: subprocess.Popen[str]


@pytest.fixture
def root(tmp_path: Path, phantom_data: Path) -> Path:
    """A folder that jobs may use, with two cases in `new`."""
    for folder in sorted(path for path in phantom_data.iterdir() if path.is_dir())[:2]:
        target = tmp_path / "studies" / "new" / folder.name
        target.mkdir(parents=True)
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    return tmp_path / "studies"


@pytest.fixture
def started(repo: Path, root: Path, tmp_path: Path) -> Iterator[Started]:
    """An endpoint without a cluster that asks for keys and runs jobs."""
    storage = open_storage(root / "new")
    case = load_case(storage, discover_cases(storage)[0][0])
    # Else the endpoint and the job choose a precision, each by its own number of threads.
    config = override(unet_tiny(), **{"train.precision": "fp32"})
    spec = ModelSpec(config=config, out_channels=3, spacing_mm=case.spacing_mm, manifest_hash="0" * 12)
    torch.manual_seed(0)
    write_package(tmp_path / "model", spec, spec.build().state_dict())
    keys = str(tmp_path / "keys.json")
    add = [sys.executable, str(repo / "serve" / "keys.py"), "add", "pipeline", "--file", keys]
    made = subprocess.run(add, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    # fmt: off
    command = [
        sys.executable, str(repo / "serve" / "app.py"), "--model", str(tmp_path / "model"), "--superres", "none",
        "--port", str(services.free_port()), "--api-keys", keys, "--job-roots", str(root),
    ]
    # fmt: on
    with (tmp_path / "log").open("w") as log:
        # Serve's fast proxy; `test_serve.py` has the usual one.
        env = {**os.environ, "RAY_SERVE_ENABLE_HA_PROXY": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (tmp_path / "log").read_text()
            yield Started(json.loads(line)["endpoint"], json.loads(made.stdout)["key"], process)
        finally:
            process.kill()
            process.wait()


def test_a_pipeline_with_a_key_until_the_endpoint_is_told_to_end(
    started: Started, root: Path, tmp_path: Path
) -> None:
    url, key = started.url, started.key
    with glioray.Client(url) as stranger:
        assert stranger.ready(60)
        with pytest.raises(EndpointError, match="an API key is needed"):
            stranger.segment_folder(root / "new", tmp_path / "masks")
    with glioray.Client(url, api_key=key) as client:
        result = client.segment_folder(root / "new", tmp_path / "masks", labels="brats-et3")
        assert client.segment(root / "new", "report", case_id=min(result.files)).request_id
    assert (len(result.files), result.failed) == (2, {})
    named = requests.get(f"{url}/healthz", headers={"X-Request-Id": "pipeline-0001"}, timeout=30)
    assert named.headers["X-Request-Id"] == "pipeline-0001"

    with glioray.Client(url) as stranger, pytest.raises(EndpointError, match="an API key is needed"):
        stranger.start_job(root / "new")
    with glioray.Client(url, api_key=key) as client:
        job = client.start_job(root / "new", labels="brats-et3")
        assert (job.state, job.num_done) == ("waiting", 0)
        job = client.wait_for_job(job.id, poll_s=0.5)
        with pytest.raises(EndpointError, match="below") as refused:
            client.start_job(tmp_path)
    assert (job.state, job.num_done, job.failed, job.error) == ("done", 2, {}, None)
    assert refused.value.status == 422
    for case_id, place in result.files.items():
        sent = read_volume(Path(place).read_bytes(), name=case_id).array
        found = read_volume((Path(job.out) / f"{case_id}_seg.nii.gz").read_bytes(), name=case_id).array
        # Another number of threads adds up in another order: a few voxels on the border may differ.
        assert (sent != found).mean() < 1e-3
        assert sent.any()

    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(DEADLINE_S) == 0
    assert started.process.stdout is not None
    assert started.process.stdout.read() == ""
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/healthz", timeout=10)
