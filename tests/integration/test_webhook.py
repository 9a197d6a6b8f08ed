"""A real MLflow server calls the endpoint when an alias moves."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import services
import torch
import uvicorn
from mlflow.tracking import MlflowClient
from serve.api import make_api
from serve.schemas import Settings
from serve.watch import ModelWatch

from glioray.engine.on_mlflow.registry import log_model, register_model, set_champion
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.machine import free_port
from glioray.tasks.segmentation.package import ModelSpec, write_package
from glioray.tasks.segmentation.predictor import Predictor
from glioray.tasks.segmentation.recipes import unet_tiny

_SECRET = "a secret of a webhook"


@pytest.fixture
def calling_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow server that may call loopback."""
    for name, value in {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        # It would look for new webhooks once a minute.
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
    }.items():
        monkeypatch.setenv(name, value)
    service = services.start_mlflow(tmp_path / "mlflow")
    yield service.address
    service.stop()


def _register(folder: Path, seed: int, address: str) -> str:
    spec = ModelSpec(
        config=unet_tiny(), out_channels=3, spacing_mm=(1.0, 1.0, 1.0), manifest_hash=f"{seed:012}"
    )
    torch.manual_seed(seed)
    net = torch.nn.Conv2d(4, 3, 1)  # stands for the export alone
    write_package(folder, spec, spec.build().state_dict())
    logger = RunLogger.open_run("webhook", f"run-{seed}", kind="train", tracking_uri=address)
    log_model(logger, folder, net, torch.zeros(2, 4, 16, 16))
    logger.finish()
    return register_model("net", logger.run_id, {}, tracking_uri=address)


def _wait_for(watch: ModelWatch[Predictor], version: str) -> None:
    end = time.monotonic() + 60
    while watch.served is None or watch.served.version != version:
        assert time.monotonic() < end, watch.status
        time.sleep(0.05)


def test_an_alias_that_moves_is_followed_at_once(calling_server: str, tmp_path: Path) -> None:
    versions = [_register(tmp_path / f"package-{seed}", seed, calling_server) for seed in (0, 1)]
    set_champion("net", "1", tracking_uri=calling_server)
    (tmp_path / "secret").write_text(_SECRET)
    watch: ModelWatch[Predictor] = ModelWatch(
        "models:/net@champion", Predictor.load, poll_s=3600, tracking_uri=calling_server, device="cpu"
    )
    api = make_api(Settings(webhook_secret=str(tmp_path / "secret")), {"segmentation": watch})
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_for(watch, versions[0])
        MlflowClient(calling_server).create_webhook(
            name="glioray",
            url=f"http://127.0.0.1:{port}/hooks/registry",
            events=["model_version_alias.created"],
            secret=_SECRET,
        )
        set_champion("net", "2", tracking_uri=calling_server)
        _wait_for(watch, versions[1])
    finally:
        server.should_exit = True
        thread.join()
