"""POST /v1/jobs without Ray: which places it reads and writes, how its state is kept, and how it ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve.api import make_api
from serve.jobs import JobStore, run_job
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.cases.nifti import encode_volume, read_volume
from glioray.errors import GliorayError
from glioray.tasks.segmentation import prediction
from glioray.tasks.segmentation.predictor import Predictor

NAMES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}


class _Here:
    """Runs jobs in threads of this process."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots, self.threads = roots, {}

    def start(self, root: str, job_id: str) -> None:
        self.threads[job_id] = threading.Thread(
            target=run_job, args=(JobStore(self.roots), root, job_id, None)
        )
        self.threads[job_id].start()

    def stop(self, job_id: str) -> None: ...

    def list_running(self) -> list[str]:
        return [job_id for job_id, thread in self.threads.items() if thread.is_alive()]

    def join(self) -> None:
        for thread in self.threads.values():
            thread.join(60)
            assert not thread.is_alive()


class _Nowhere(_Here):
    """A cluster that a job's process is lost on."""

    def start(self, root: str, job_id: str) -> None: ...


@pytest.fixture(autouse=True)
def before_case(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[str], None]]:
    """Maps cases in this process, in place of a cluster; calls each of the list with a case's name before its turn."""
    hooks: list[Callable[[str], None]] = []

    def map_here(
        packages: Mapping[str, Path], load: Any, cases: Sequence[Any], work: Any, *, on_case: Any
    ) -> list[dict[str, Any]]:
        models, answers = load(packages), []
        for files in cases:
            for hook in hooks:
                hook(files.case_id)
            try:
                answer = work(models, files)
            except GliorayError as error:
                answer = {"error": str(error)}
            answers.append({"case_id": files.case_id, **answer})
            on_case(answers[-1])
        return answers

    monkeypatch.setattr(prediction, "map_cases", map_here)
    monkeypatch.setattr("serve.jobs._SAVE_S", 0.0)
    return hooks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that jobs may use, with three cases in `new`."""
    folder = tmp_path / "studies"
    folder.mkdir()
    return folder


@pytest.fixture
def cases(root: Path, files: dict[str, bytes]) -> list[str]:
    """The names of three cases in `new`, the last one damaged."""
    names = [f"BraTS-GLI-{number:05}-000" for number in range(3)]
    for case_id in names:
        (root / "new" / case_id).mkdir(parents=True)
        for name, data in files.items():
            (root / "new" / case_id / f"{case_id}-{NAMES[name]}.nii.gz").write_bytes(data)
    (root / "new" / names[2] / f"{names[2]}-t1n.nii.gz").write_bytes(b"damaged")
    return names


@pytest.fixture
def launcher(root: Path) -> _Here:
    return _Here([str(root)])


@pytest.fixture
def make_jobs_client(watch: ModelWatch[Predictor], root: Path) -> Callable[..., TestClient]:
    """Makes a client of an endpoint that runs jobs below the root."""

    def make(launcher: _Here, **settings: Any) -> TestClient:
        settings = {"job_roots": (str(root),), **settings}
        return TestClient(make_api(Settings(**settings), {"segmentation": watch}, launcher=launcher))

    return make


@pytest.fixture
def client(make_jobs_client: Callable[..., TestClient], launcher: _Here) -> TestClient:
    return make_jobs_client(launcher)


def _run(client: TestClient, launcher: _Here, **request: Any) -> dict[str, Any]:
    """The state of a job at its end."""
    answer = client.post("/v1/jobs", json=request)
    assert answer.status_code == 202, answer.text
    launcher.join()
    job: dict[str, Any] = client.get(f"/v1/jobs/{answer.json()['id']}").json()
    return job


def test_a_job_writes_the_masks_that_the_endpoint_answers_with(
    client: TestClient,
    launcher: _Here,
    make_jobs_client: Callable[..., TestClient],
    root: Path,
    cases: list[str],
    files: dict[str, bytes],
    watch: ModelWatch[Predictor],
) -> None:
    answer = client.post("/v1/jobs", json={"data": f"{root}/new", "labels": "brats-et3"})
    assert answer.status_code == 202
    begun = answer.json()
    assert watch.served is not None
    assert (begun["state"], begun["model"]) == ("waiting", watch.served.version)
    launcher.join()
    # By another gateway, as after a restart.
    job = make_jobs_client(_Here([str(root)])).get(f"/v1/jobs/{begun['id']}").json()
    assert (job["state"], job["num_cases"], job["num_done"], job["error"]) == ("done", 3, 2, None)
    assert list(job["failed"]) == cases[2:]
    assert "is not NIfTI" in job["failed"][cases[2]]
    expected = client.post("/v1/segment", files=files, data={"labels": "brats-et3"}).content
    masks = sorted(Path(job["out"]).glob("[!.]*"))
    assert [path.name for path in masks] == [f"{case_id}_seg.nii.gz" for case_id in cases[:2]]
    for path in masks:
        found, answered = (read_volume(data, name="mask") for data in (path.read_bytes(), expected))
        assert (found.array == answered.array).all()
    # What a job leaves below the root is no case of the next one.
    again = _run(client, launcher, data=str(root), out=f"{root}/masks", labels="brats-et3", uncertainty=True)
    assert (again["num_cases"], again["num_done"], again["out"]) == (3, 2, f"{root}/masks")
    assert (root / "masks" / f"{cases[0]}_uncertainty.nii.gz").is_file()


def test_cases_of_other_voxels_are_resampled_on_request(
    client: TestClient, launcher: _Here, root: Path, cases: list[str], files: dict[str, bytes]
) -> None:
    for name, data in files.items():
        coarse = encode_volume(read_volume(data, name=name).array, np.diag([2.0, 2.0, 2.0, 1.0]))
        (root / "new" / cases[0] / f"{cases[0]}-{NAMES[name]}.nii.gz").write_bytes(coarse)
    refused = _run(client, launcher, data=f"{root}/new", labels="brats-et3")
    assert "(--resample in a job)" in refused["failed"][cases[0]]
    job = _run(client, launcher, data=f"{root}/new", labels="brats-et3", resample=True)
    assert (job["resample"], job["num_done"], list(job["failed"])) == (True, 2, cases[2:])


def test_places_outside_of_the_roots_are_refused(
    client: TestClient, root: Path, cases: list[str], tmp_path: Path, detail_of: Callable[[Any, int], str]
) -> None:
    (tmp_path / "studies-of-others").mkdir()
    (root / "elsewhere").symlink_to(tmp_path / "studies-of-others")
    # fmt: off
    places = [
        "new", "./new", "~", "/", "/etc", str(tmp_path), f"{root}/../studies-of-others", f"{root}-of-others",
        f"{root}/elsewhere", f"{root}/new/../../..", f"file://{root}/new", f"http://127.0.0.1/{root}", "s3://bucket/new",
        f"s3://{root}", f"//{root}/../..", f"{root}\0/new", "C:\\data", "models:/x@y", "\ud800",
    ]
    # fmt: on
    for place in places:
        for field in ("data", "out"):
            request = {"data": f"{root}/new", field: place}
            detail = detail_of(client.post("/v1/jobs", content=_json(request), headers=JSON), 422)
            assert field in detail
            assert "\n" not in detail
    assert not (root / ".glioray-jobs").exists()
    assert not list((tmp_path / "studies-of-others").iterdir())


JSON = {"Content-Type": "application/json"}


def _json(values: Mapping[str, str]) -> bytes:
    """Also of texts that are no Unicode, which `json.dumps` escapes."""
    return json.dumps(values).encode()


def test_prefixes_of_a_bucket(tmp_path: Path) -> None:
    store = JobStore(["s3://studies/brats/", "s3://free"])
    assert store.find_place("s3://studies/brats", "data") == ("s3://studies/brats", "s3://studies/brats")
    assert store.find_place("s3://studies/brats/new/", "data")[0] == "s3://studies/brats/new"
    assert store.find_place("s3://free/x", "data")[1] == "s3://free"
    for place in (
        "s3://studies/brats2",
        "s3://studies",
        "s3://studies/brats/../x",
        "s3://studies/brats//x",
        "s3://",
    ):
        with pytest.raises(GliorayError, match="expected an absolute folder or s3://bucket/prefix below"):
            store.find_place(place, "data")
    for root in ("data", "http://host/x", "s3://"):
        with pytest.raises(GliorayError, match="the root of jobs is"):
            JobStore([root])


def test_a_link_out_of_the_roots_is_not_followed(
    client: TestClient, launcher: _Here, root: Path, cases: list[str], tmp_path: Path
) -> None:
    image = root / "new" / cases[0] / f"{cases[0]}-t1n.nii.gz"
    (tmp_path / "secret.nii.gz").write_bytes(image.read_bytes())
    image.unlink()
    image.symlink_to(root / "new" / cases[1] / f"{cases[1]}-t1n.nii.gz")
    assert _run(client, launcher, data=f"{root}/new")["state"] == "done"
    image.unlink()
    image.symlink_to(tmp_path / "secret.nii.gz")
    job = _run(client, launcher, data=f"{root}/new")
    assert job["state"] == "failed"
    assert job["error"] == (
        f"'{cases[0]}/{image.name}' is a link out of the folders that jobs may read; put the file itself there"
    )
    assert not Path(job["out"]).exists()


def test_a_job_is_cancelled_and_keeps_what_it_has(
    client: TestClient,
    launcher: _Here,
    root: Path,
    cases: list[str],
    before_case: list[Callable[[str], None]],
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(case_id: str) -> None:
        if case_id == cases[1]:
            entered.set()
            assert go_on.wait(60)

    before_case.append(wait)
    job_id = client.post("/v1/jobs", json={"data": f"{root}/new"}).json()["id"]
    assert entered.wait(60)
    running = client.get(f"/v1/jobs/{job_id}").json()
    assert (running["state"], running["num_cases"], running["num_done"]) == ("running", 3, 1)
    assert client.delete(f"/v1/jobs/{job_id}").json()["state"] == "cancelled"
    go_on.set()
    launcher.join()
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "cancelled"
    assert (Path(job["out"]) / f"{cases[0]}_seg.nii.gz").is_file()
    assert not (Path(job["out"]) / f"{cases[2]}_seg.nii.gz").exists()
    assert client.delete(f"/v1/jobs/{job_id}").json() == job


def test_a_job_that_is_begun_again_does_the_rest(
    client: TestClient,
    launcher: _Here,
    root: Path,
    cases: list[str],
    before_case: list[Callable[[str], None]],
) -> None:
    seen: list[str] = []

    def die(case_id: str) -> None:
        seen.append(case_id)
        if len(seen) == 2:
            raise SystemExit

    before_case.append(die)
    job = _run(client, launcher, data=f"{root}/new")
    assert (job["state"], job["num_done"]) == ("running", 1)
    launcher.start(str(root), job["id"])
    launcher.join()
    job = client.get(f"/v1/jobs/{job['id']}").json()
    assert (job["state"], job["num_done"], list(job["failed"])) == ("done", 2, cases[2:])
    assert seen == [cases[0], cases[1], cases[1], cases[2]]
    launcher.start(str(root), job["id"])
    launcher.join()
    assert client.get(f"/v1/jobs/{job['id']}").json() == job


def test_a_job_without_a_process_has_failed(
    make_jobs_client: Callable[..., TestClient], root: Path, cases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_jobs_client(_Nowhere([str(root)]))
    job = client.post("/v1/jobs", json={"data": f"{root}/new"}).json()
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "waiting"

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=61)

    monkeypatch.setattr("serve.jobs.datetime", Later)
    job = client.get(f"/v1/jobs/{job['id']}").json()
    assert (job["state"], job["error"]) == ("failed", "the process of the job ended; send the job again")


def test_what_goes_wrong_is_a_sentence(
    client: TestClient,
    launcher: _Here,
    root: Path,
    before_case: list[Callable[[str], None]],
    files: dict[str, bytes],
) -> None:
    (root / "empty").mkdir()
    job = _run(client, launcher, data=f"{root}/empty")
    assert job["state"] == "failed"
    assert "holds no case" in job["error"]
    assert "is not a folder; check the path" in _run(client, launcher, data=f"{root}/absent")["error"]

    def broken(_: str) -> None:
        raise RuntimeError("a secret of the server")

    before_case.append(broken)
    (root / "one").mkdir()
    for name, data in files.items():
        (root / "one" / f"BraTS-GLI-00009-000-{NAMES[name]}.nii.gz").write_bytes(data)
    assert _run(client, launcher, data=f"{root}/one")["error"] == (
        "the server failed on this job; its log says why"
    )


def test_requests_that_are_none(
    client: TestClient,
    make_client: Callable[..., TestClient],
    root: Path,
    cases: list[str],
    detail_of: Callable[[Any, int], str],
) -> None:
    for body, found in {
        b"": "the body is no JSON object",
        b"[]": "the body is no JSON object",
        b"{": "the body is no JSON object",
        b"{}": "the field 'data' is missing",
        b'{"data": 3}': "the field 'data': input should be a valid string",
        b'{"data": ""}': "the field 'data': string should have at least 1 character",
        b'{"data": "/x", "more": 1}': "the field 'more' is not known",
        _json({"data": f"{root}/new", "labels": "nonsense"}): "nonsense",
    }.items():
        assert found in detail_of(client.post("/v1/jobs", content=body, headers=JSON), 422)
    large = client.post("/v1/jobs", content=b" " * 70_000, headers=JSON)
    assert "larger than 0.065536 MB" in detail_of(large, 413)
    for job_id in ("0" * 16, "x", "..", "%2e%2e%2f", "A" * 16):
        assert client.get(f"/v1/jobs/{job_id}").status_code == 404
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 404
    detail = detail_of(make_client().post("/v1/jobs", json={"data": "/x"}), 503)
    assert detail == (
        "this endpoint runs no jobs; start it with --job-roots, on Ray, and name the places for them"
    )


def test_no_more_jobs_at_once_than_allowed(
    make_jobs_client: Callable[..., TestClient],
    launcher: _Here,
    root: Path,
    cases: list[str],
    before_case: list[Callable[[str], None]],
    watch: ModelWatch[Predictor],
    detail_of: Callable[[Any, int], str],
) -> None:
    client = make_jobs_client(launcher, max_jobs=1)
    go_on = threading.Event()

    def wait(_: str) -> None:
        assert go_on.wait(60)

    before_case.append(wait)
    assert client.post("/v1/jobs", json={"data": f"{root}/new"}).status_code == 202
    refused = client.post("/v1/jobs", json={"data": f"{root}/new"})
    go_on.set()
    launcher.join()
    assert "as many jobs run as may (jobs: 1); retry in 60 s" in detail_of(refused, 429)
    assert refused.headers["retry-after"] == "60"
    assert client.post("/v1/jobs", json={"data": f"{root}/new"}).status_code == 202
    launcher.join()
    watch.served = None
    detail_of(client.post("/v1/jobs", json={"data": f"{root}/new"}), 503)


def test_the_time_of_a_state_has_its_zone(client: TestClient, launcher: _Here, root: Path) -> None:
    (root / "empty").mkdir()
    job = _run(client, launcher, data=f"{root}/empty")
    began, ended = (datetime.fromisoformat(job[name]) for name in ("created_at", "updated_at"))
    assert began <= ended <= datetime.now(UTC)
