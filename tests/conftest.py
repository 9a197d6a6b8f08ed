"""What every test stands on: the environment before Ray is imported, and the real servers as fixtures.

Servers start once a session, on free loopback ports, and end with it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import services
from xdist.scheduler import LoadScopeScheduling

from glioray.machine import bypass_proxies

ROOT = Path(__file__).resolve().parents[1]

_SESSION = tempfile.TemporaryDirectory(prefix="glt-", ignore_cleanup_errors=True)
_TOKEN = Path(_SESSION.name) / "auth_token"
services.make_token(_TOKEN)

# What a developer's shell points at must not reach the tests: they read and write their own servers only.
_PREFIXES = ("RAY_", "AWS_", "MLFLOW_", "GLIORAY_")
for _name in [name for name in os.environ if name.startswith(_PREFIXES)]:
    if _name not in ("GLIORAY_REAL_DATA", "GLIORAY_SKULL_HEAD", "GLIORAY_STORM", "AWS_CA_BUNDLE"):
        del os.environ[_name]
# Ray reads these when it is imported. One token for all of a session's clusters, because a process caches it.
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN_PATH=str(_TOKEN),
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_TMPDIR=str(Path(_SESSION.name) / "r"),
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    OMP_NUM_THREADS="1",
)
Path(os.environ["RAY_TMPDIR"]).mkdir()
bypass_proxies()


# Folder of tests, and its marker -> seconds a test may take: many times what it takes on two quiet cores, so that no
# slow or busy machine fails one.
_TIMEOUTS_S = {"unit": 300, "contracts": 900, "integration": 1800, "e2e": 1800}
_ON_RAY = ("integration", "e2e")


def pytest_configure() -> None:
    _end_on_term()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and limit its time."""
    for item in items:
        tier = next((name for name in _TIMEOUTS_S if item.get_closest_marker(name)), None)
        if tier is None:
            folder = _folder(item.nodeid)
            is_contract = folder not in _TIMEOUTS_S or (folder == "unit" and item.get_closest_marker("real"))
            tier = "contracts" if is_contract else folder
            item.add_marker(tier)
        item.add_marker(pytest.mark.timeout(_TIMEOUTS_S[tier]))
    if hasattr(config, "workerinput"):
        # Two processes begin with the tests on Ray, which mostly wait; whoever is done first takes the others.
        items.sort(key=lambda item: _folder(item.nodeid) not in _ON_RAY)


class _FilesScheduling(LoadScopeScheduling):
    """Gives each process whole files, but all tests of a folder on Ray to one: a third Ray would starve the others."""

    def _split_scope(self, nodeid: str) -> str:
        return _folder(nodeid) if _folder(nodeid) in _ON_RAY else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesScheduling:
    """Keep the order of the collection."""
    config.option.loadscopereorder = False
    return _FilesScheduling(config, log)


def _folder(nodeid: str) -> str:
    """The folder of `tests/` that a test is in."""
    return nodeid.split("/")[1]


def _end_on_term() -> None:
    """A time limit's TERM ends the session as Ctrl-C does, so that its servers end with it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


# Ray starts up to a process for each of its CPUs, at seconds of imports each.
_LOCAL_CPUS, _CLUSTER_CPUS = 2, 4
_OBJECT_STORE_BYTES = 200 << 20


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cases; a test that asks for it is skipped where there is none."""
    value = os.environ.get("GLIORAY_REAL_DATA", "")
    if not value:
        pytest.skip("needs real cases: set GLIORAY_REAL_DATA to their folder")
    # Jobs that the tests start have other working directories.
    folder = Path(value).resolve()
    if not folder.is_dir():
        pytest.fail(f"GLIORAY_REAL_DATA is '{value}', which is not a folder")
    return folder


@pytest.fixture
def free_port() -> int:
    """A loopback port that nobody listens on."""
    return services.free_port()


@pytest.fixture(scope="session")
def _s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    service = services.start_s3(tmp_path_factory.mktemp("s3"), ["mlflow"])
    yield service
    service.stop()


@pytest.fixture
def s3_server(_s3_service: services.Service, monkeypatch: pytest.MonkeyPatch) -> str:
    """The endpoint of an S3 server, with the AWS variables of the environment set for it."""
    for name, value in _s3_service.env.items():
        monkeypatch.setenv(name, value)
    return _s3_service.address


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The name of a fresh bucket on the S3 server."""
    import secrets

    import boto3

    name = f"test-{secrets.token_hex(4)}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def _mlflow_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    service = services.start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield service
    service.stop()


@pytest.fixture
def mlflow_server(_mlflow_service: services.Service, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an MLflow server, which MLFLOW_TRACKING_URI names too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _mlflow_service.address)
    return _mlflow_service.address


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this process alone, whose workers import glioray."""
    import ray

    from glioray.engine.on_ray.connect import WORKER_ENVIRONMENT

    # Without the dashboard, Tune over Train leaks placement groups and waits for ever.
    ray.init(
        "local",
        num_cpus=_LOCAL_CPUS,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=True,
        log_to_driver=False,
        runtime_env={
            "env_vars": {**WORKER_ENVIRONMENT, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'tests'}"}
        },
    )
    # Ray has put its own in place, which ends one test and no session.
    _end_on_term()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _ray_head(
    _s3_service: services.Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Service]:
    service = services.start_ray_head(
        tmp_path_factory.mktemp("ray"),
        num_cpus=_CLUSTER_CPUS,
        env=_s3_service.env,
        cwd=ROOT,
        token=_TOKEN,
        object_store_bytes=_OBJECT_STORE_BYTES,
    )
    yield service
    service.stop()


@pytest.fixture
def ray_cluster(_ray_head: services.Service, monkeypatch: pytest.MonkeyPatch) -> services.Service:
    """A cluster of its own processes that takes jobs and does not have glioray installed.

    The environment is that of a client: `ray job submit` reaches it. Its nodes have the keys of S3. What a job needs
    beyond that goes through `--runtime-env-json`, as on any cluster.
    """
    for name, value in _ray_head.env.items():
        # In a driver of this process RAY_ADDRESS would take `ray_local`'s place.
        if name != "RAY_ADDRESS":
            monkeypatch.setenv(name, value)
    return _ray_head


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six small phantom cases in BraTS layout; read only."""
    phantom: Any = pytest.importorskip("glioray.cases.phantom")
    from glioray.storage import open_storage

    folder = tmp_path_factory.mktemp("phantom")
    phantom.write_phantoms(open_storage(folder), num_cases=6, shape=(96, 96, 48))
    return folder


@pytest.fixture(scope="session")
def phantom_index(phantom_data: Path) -> Any:
    """The manifest of the phantoms, made in this process, which saves the start of Ray Data's."""
    from glioray.cases.layouts import discover_cases
    from glioray.cases.manifest import build_manifest, check_case
    from glioray.storage import open_storage

    storage = open_storage(phantom_data)
    cases, _ = discover_cases(storage)
    return build_manifest(storage.uri, [check_case(storage, files) for files in cases], seed=0)


@pytest.fixture(scope="session")
def slice_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs on the phantoms, so that they are decoded once for a preprocessing."""
    return tmp_path_factory.mktemp("cache")
