"""What is kept of a run while no server answers. The server here is a port that nobody listens on."""

import io
import logging
from pathlib import Path

import pytest
from mlflow.entities import Dataset, DatasetInput, Metric, RunTag
from mlflow.tracking import MlflowClient
from PIL import Image

from glioray.engine.on_mlflow.outbox import Artifact, Entities, ExperimentTag, Inputs, Outbox, StepImage


@pytest.fixture
def client(free_port: int, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowClient(f"http://127.0.0.1:{free_port}")


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "png")
    return buffer.getvalue()


EVERY_KIND = (
    Artifact("a.txt", b"x"),
    StepImage("overlays", 1, 0, _png()),
    Inputs((DatasetInput(Dataset("brats/train", "0123", "local", "{}")),)),
    ExperimentTag("1", "view", "{}"),
)


def _metrics(count: int, name: str = "loss") -> Entities:
    return Entities(metrics=[Metric(name, float(step), 0, step) for step in range(count)])


def test_nothing_raises_and_it_is_said_once(client: MlflowClient, caplog: pytest.LogCaptureFixture):
    outbox = Outbox(client, "run")
    with caplog.at_level(logging.WARNING, logger="glioray"):
        for _ in range(5):
            outbox.put([_metrics(1), *EVERY_KIND])
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"MLflow at {client.tracking_uri} cannot be reached"
    ]
    assert not outbox.flush()
    assert len(outbox) == 25
    assert outbox.forget()[:5] == [
        "1 metrics",
        "the file a.txt",
        "the image overlays of step 1",
        "1 data sets",
        "the experiment's tag view",
    ]


@pytest.mark.contracts
def test_every_kind_reaches_a_database_without_a_server(tmp_path: Path):
    # It checks types that a server's clients do not.
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("x", str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    tag = ExperimentTag(experiment, "view", "{}")
    outbox = Outbox(client, run_id)
    outbox.put([_metrics(2), *(tag if isinstance(kind, ExperimentTag) else kind for kind in EVERY_KIND)])
    assert outbox.flush()
    run = client.get_run(run_id)
    assert run.data.metrics == {"loss": 1.0}
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["brats/train"]
    assert {item.path for item in client.list_artifacts(run_id)} == {"a.txt", "images"}
    assert client.get_experiment(experiment).tags["view"] == "{}"


def test_metrics_share_a_request_up_to_its_limit(client: MlflowClient):
    outbox = Outbox(client, "run")
    outbox.put([_metrics(1)])
    for _ in range(1500):
        outbox.put([_metrics(1)])
    assert len(outbox) == 2


def test_the_oldest_are_dropped_beyond_the_bound(client: MlflowClient, caplog: pytest.LogCaptureFixture):
    outbox = Outbox(client, "run", max_bytes=1000)
    with caplog.at_level(logging.WARNING, logger="glioray"):
        outbox.put([Entities(tags=[RunTag("first", "x")])])
        outbox.put([Artifact("big.png", bytes(900))])
        outbox.put([Artifact("last.png", bytes(600))])
    assert outbox.lost == ["1 tags", "the file big.png"]
    assert "dropped the file big.png of run run" in caplog.text
    assert outbox.forget() == ["1 tags", "the file big.png", "the file last.png"]
    assert len(outbox) == 0
