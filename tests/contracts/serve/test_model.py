"""Which model is served, and what the endpoint says about it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve import watch as watch_module
from serve.api import make_api
from serve.app import build_app
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.errors import ModelError, StorageError, UsageError
from glioray.tasks.segmentation.predictor import Predictor

ALIAS = "models:/net@champion"


class _Registry:
    """Stands for the registry's two functions: `now` is a version's folder, or what is raised."""

    def __init__(self) -> None:
        self.now: str | Exception = ModelError("there is no such alias at http://inside:5000")
        self.packages: dict[str, Path | Exception] = {}
        self.fetched: list[str] = []

    def resolve_version(self, uri: str, *, tracking_uri: str | None = None) -> str:
        assert (uri, tracking_uri) == (ALIAS, "http://inside:5000")
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def fetch_package(self, uri: str, folder: Path, *, tracking_uri: str | None = None) -> Path:
        self.fetched.append(uri)
        package = self.packages[uri]
        if isinstance(package, Exception):
            raise package
        return package


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, make_package: Callable[[int], Path]) -> _Registry:
    registry = _Registry()
    registry.packages = {f"models:/net/{n}": make_package(n) for n in (1, 2)}
    monkeypatch.setattr(watch_module, "resolve_version", registry.resolve_version)
    monkeypatch.setattr(watch_module, "fetch_package", registry.fetch_package)
    return registry


@pytest.fixture
def watch(registry: _Registry) -> ModelWatch[Predictor]:
    return ModelWatch(ALIAS, Predictor.load, poll_s=3600, tracking_uri="http://inside:5000", device="cpu")


def _version(watch: ModelWatch[Predictor]) -> str | None:
    return None if watch.served is None else watch.served.version


def test_before_any_champion(watch: ModelWatch[Predictor]) -> None:
    api = make_api(Settings(model=ALIAS), {"segmentation": watch})
    client = TestClient(api)  # without its lifespan, so that only `refresh` looks
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").json()["state"] == "loading"
    watch.refresh()
    waiting = client.get("/readyz")
    assert waiting.status_code == 503
    assert waiting.json()["state"] == "waiting"
    assert f"there is no '{ALIAS}'" in waiting.json()["detail"]
    assert client.get("/v1/models").json() == {"models": []}
    refused = client.post("/v1/segment", files={"t1": b""})
    assert refused.status_code == 503
    assert refused.json() == {"detail": waiting.json()["detail"]}
    assert "inside" not in refused.text
    assert int(refused.headers["retry-after"]) > 0


def test_a_promotion_is_followed(watch: ModelWatch[Predictor], registry: _Registry) -> None:
    client = TestClient(make_api(Settings(model=ALIAS), {"segmentation": watch}))
    registry.now = "models:/net/1"
    watch.refresh()
    assert client.get("/readyz").json() == {"state": "ready", "detail": "serving models:/net/1"}
    first = watch.served
    registry.now = "models:/net/2"
    watch.refresh()
    watch.refresh()
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["uri"], model["version"]) == (ALIAS, "models:/net/2")
    assert model["recipe"] == "unet_tiny"
    assert model["modalities"] == ["t1", "t1c", "t2", "flair"]
    assert model["metrics"] == {"dice_wt": 0.5}
    assert model["spacing_mm"] == [1.0, 1.0, 1.0]
    assert model["preprocessing"]["size"] == [96, 96]
    assert registry.fetched == ["models:/net/1", "models:/net/2"]
    assert first is not None
    assert first.version == "models:/net/1"


def test_an_outage_keeps_the_model_and_is_told_once(
    watch: ModelWatch[Predictor], registry: _Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.now = "models:/net/1"
    watch.refresh()
    registry.now = StorageError("the MLflow server does not answer")
    # Not caplog: other tests leave handlers on the package's logger, and a line would be seen twice.
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("glioray.serve"), "info", lines.append)
    watch.refresh()
    watch.refresh()
    assert _version(watch) == "models:/net/1"
    assert lines == ["the MLflow server does not answer; going on with models:/net/1"]
    registry.now = "models:/net/2"
    watch.refresh()
    assert _version(watch) == "models:/net/2"


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    watch: ModelWatch[Predictor], registry: _Registry
) -> None:
    registry.now = "models:/net/1"
    watch.refresh()
    registry.packages["models:/net/3"] = ModelError("broken")
    registry.now = "models:/net/3"
    watch.refresh()
    assert _version(watch) == "models:/net/1"


def test_a_first_version_that_cannot_be_loaded_is_named(
    watch: ModelWatch[Predictor], registry: _Registry
) -> None:
    registry.packages["models:/net/3"] = ModelError("broken")
    registry.now = "models:/net/3"
    watch.refresh()
    assert (watch.state, _version(watch)) == ("waiting", None)
    assert "models:/net/3 cannot be loaded" in watch.reason


def test_an_alias_that_is_taken_away_withdraws_the_model(
    watch: ModelWatch[Predictor], registry: _Registry
) -> None:
    registry.now = "models:/net/1"
    watch.refresh()
    registry.now = ModelError("there is no such alias")
    watch.refresh()
    assert watch.served is None
    assert watch.state == "waiting"


def test_the_thread_outlives_what_nobody_foresaw(registry: _Registry) -> None:
    watch = ModelWatch(ALIAS, Predictor.load, poll_s=0.01, tracking_uri="http://inside:5000", device="cpu")
    registry.now = RuntimeError("unforeseen")
    watch.start()
    registry.now = "models:/net/1"
    try:
        for _ in range(2000):
            if watch.served is not None:
                break
            time.sleep(0.01)
        assert _version(watch) == "models:/net/1"
    finally:
        watch.stop()


def _form(description: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """The schema of an operation's form."""
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    found: dict[str, Any] = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def test_the_description_needs_nobody_else() -> None:
    watch = ModelWatch("somewhere", Predictor.load, poll_s=3600)
    client = TestClient(make_api(Settings(), {"segmentation": watch}))
    description = client.get("/openapi.json").json()
    operation = description["paths"]["/v1/segment"]["post"]
    schema = _form(description, operation)
    files, superres = {"t1", "t1c", "t2", "flair", "image"}, {"scale", "size", "blend", "plane", "force"}
    texts = {"labels", "superresolve", "grid", "resample", "output"}
    assert set(schema["properties"]) == files | {"case"} | superres | texts
    assert set(operation["responses"]) >= {"200", "413", "415", "422", "429", "503"}
    operation = description["paths"]["/v1/superresolve"]["post"]
    schema = _form(description, operation)
    assert set(schema["properties"]) == files | {"case"} | superres
    blend = schema["properties"]["blend"]
    assert (blend["type"], blend["minimum"], blend["maximum"]) == ("number", 0, 1)
    assert "HTTPValidationError" not in description["components"]["schemas"]
    assert {"application/zip", "image/png"} < set(operation["responses"]["200"]["content"])
    assert {"Report", "Sharpened", "SuperResAnswer"} < set(description["components"]["schemas"])
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404


def test_the_application_takes_its_settings() -> None:
    settings = Settings(replicas=2, max_replicas=3, cpus=2, gpus=1, no_keys=True)
    _, _, models = build_app(settings)._bound_deployment.init_args
    for task, (low, first) in {"segmentation": (2, 2), "superres": (0, 1)}.items():
        deployment = models[task]._bound_deployment
        scaling = deployment._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (low, first, 3)
        assert deployment.ray_actor_options["num_cpus"] == settings.num_threads == 2
        assert deployment.ray_actor_options["num_gpus"] == 1
    assert Settings(replicas=4).max_replicas == 4
    with pytest.raises(ValueError, match="max_replicas is 1; expected at least replicas, 2"):
        Settings(replicas=2, max_replicas=1)
    with pytest.raises(ValueError, match="at_once"):
        Settings.model_validate({"at_once": 3})


def test_super_resolution_is_asked_for_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve import app

    def settings(*flags: str) -> Settings:
        endpoint = app.parse_endpoint(flags)
        assert endpoint is not None
        return app._settings(endpoint)

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert settings("--model", "folder").superres is None
    assert settings("--model", "folder", "--superres", "sharp").superres == "sharp"
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        settings("--model", "folder", "--superres", "models:/sharp@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://inside:5000")
    assert settings().superres == "models:/glioray-superres@champion"
    assert settings("--model", "folder").tracking_uri == "http://inside:5000"
    assert settings("--superres", "none").superres is None


def test_settings_of_serve_travel_to_the_cluster() -> None:
    from serve import app

    waiting = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
    assert app.serve_variables({"HOME": "/home", "RAY_SERVE_ENABLE_HA_PROXY": "1"}) == {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        waiting: "60",
    }
    assert app.serve_variables({waiting: "5"}) == {waiting: "5"}


@pytest.mark.parametrize(("address", "expected"), [(None, "0"), ("10.0.0.5:6379", "unset")])
def test_replicas_of_this_machine_do_not_give_way(
    address: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import app

    class Joined(Exception):  # noqa: N818
        pass

    def join(*args: object, **options: object) -> None:
        raise Joined

    # Set and deleted, so that the variable is gone again after the test.
    monkeypatch.setenv("RAY_worker_niceness", "15")
    monkeypatch.delenv("RAY_worker_niceness")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("sys.argv", ["app.py", "--model", "starter"])
    monkeypatch.setattr(app, "connect", join)
    with pytest.raises(Joined):
        app.main()
    assert os.environ.get(app._NICENESS[0], "unset") == expected


def test_flags_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve import app

    monkeypatch.setattr("sys.argv", ["app.py", "--model", "folder", "--replicas", "0"])
    with pytest.raises(UsageError, match="--replicas is 0"):
        app.main()
    monkeypatch.setattr("sys.argv", ["app.py", "--model", "folder", "--port", "70000"])
    with pytest.raises(UsageError, match="--port is 70000"):
        app.main()
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        app.main()
