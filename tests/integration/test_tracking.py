"""Runs, pictures and models on a real MLflow server, which is also taken away and given back."""

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import services
import torch
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import save_file
from torch import nn

from glioray.engine.on_mlflow.provenance import code_hash, code_tags
from glioray.engine.on_mlflow.registry import (
    add_to_card,
    champion,
    fetch_package,
    log_model,
    logged_model_id,
    register_model,
    resolve_version,
    set_champion,
)
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.errors import ModelError, UsageError
from glioray.nets import build_net
from glioray.storage import open_storage


@pytest.fixture
def experiment(mlflow_server: str, request: pytest.FixtureRequest) -> str:
    """An experiment of the test's own."""
    return f"tracking {request.node.name}"


@pytest.fixture
def client(mlflow_server: str) -> MlflowClient:
    return MlflowClient(mlflow_server)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return build_net("unet", in_channels=4, out_channels=3, width=4, depth=2).eval()


def _log_small(run: RunLogger, package: Path, **settings: Any) -> str:
    """Log a package beside the smallest of networks: the export of a real one takes longer than all else."""
    return log_model(run, package, nn.Conv2d(4, 3, 1), torch.zeros(1, 4, 8, 8), **settings)


def _package(folder: Path, net: nn.Module, note: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps({"note": note}))
    return folder


def test_a_run_holds_what_was_logged(experiment: str, client: MlflowClient, tmp_path: Path):
    run = RunLogger.open_run(experiment, "one", kind="train", tags={"manifest": "abc"})
    run.log_params(
        {"optim": {"lr": 1e-3, "name": "adamw"}, "size": (192, 160), "options": {}, "long": "x" * 9000}
    )
    run.log_params({"optim": {"lr": 1e-3}})
    run.log_metrics({"loss": 1.0, "dice_wt": math.nan}, step=0)
    run.log_metrics({"loss": 0.5, "dice_wt": math.inf}, step=1)
    run.log_metrics({f"m{number}": number for number in range(1500)}, step=1)
    figure = Figure()
    figure.subplots().plot([0, 1])
    run.log_figure(figure, "figures/curve.png")
    run.log_json({"a": [1, 2]}, "result.json")
    (tmp_path / "logs" / "deep").mkdir(parents=True)
    (tmp_path / "logs" / "deep" / "x.txt").write_text("x")
    run.log_folder(tmp_path / "logs", "logs")
    run.finish()

    stored = client.get_run(run.run_id)
    params = stored.data.params
    assert (params["optim.lr"], params["optim.name"], params["size"], params["options"]) == (
        "0.001",
        "adamw",
        "[192, 160]",
        "{}",
    )
    assert len(params["long"]) == 6000
    assert params["long"].endswith("(9000 characters in all)")
    assert [metric.value for metric in client.get_metric_history(run.run_id, "loss")] == [1.0, 0.5]
    nan, infinity = (metric.value for metric in client.get_metric_history(run.run_id, "dice_wt"))
    assert math.isnan(nan)
    assert infinity > 1e300
    assert stored.data.metrics["m1499"] == 1499
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "one"
    tags = stored.data.tags
    assert (tags["glioray.key"], tags["manifest"]) == ("train/one", "abc")
    assert tags.items() >= code_tags().items()
    local = Path(client.download_artifacts(run.run_id, "", str(tmp_path / "got")))
    assert (local / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((local / "result.json").read_text()) == {"a": [1, 2]}
    assert (local / "logs" / "deep" / "x.txt").read_text() == "x"


def test_an_experiment_is_of_model_training(experiment: str, client: MlflowClient):
    def kind() -> str:
        return str(client.get_experiment_by_name(experiment).tags["mlflow.experimentKind"])

    run = RunLogger.open_run(experiment, "one", kind="train")
    assert kind() == "custom_model_development"
    # What the UI itself has guessed is replaced, and what a user has chosen stays.
    for found, expected in (
        ("genai_development_inferred", "custom_model_development"),
        ("regression", "regression"),
    ):
        client.set_experiment_tag(run.experiment_id, "mlflow.experimentKind", found)
        RunLogger.open_run(experiment, "one", kind="train")
        assert kind() == expected
    assert run.url is not None
    assert run.url.endswith(f"/runs/{run.run_id}?workflowType=machine_learning")


def test_a_table_of_a_run_s_children_is_kept_for_its_link(experiment: str, client: MlflowClient):
    run = RunLogger.open_run(experiment, "sweep", kind="sweep")
    run.share_table("dice_mean", ["dice_wt", "dice_mean"], ["optim.lr"])
    tags = client.get_experiment(run.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{run.run_id}"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`dice_mean`", False)
    assert view["selectedColumns"][:3] == ["metrics.`dice_mean`", "metrics.`dice_wt`", "params.`optim.lr`"]
    children = [RunLogger.open_run(experiment, "t", kind="trial", parent_run_id=run.run_id).run_id]
    found = client.search_runs([run.experiment_id], view["searchFilter"])
    assert [child.info.run_id for child in found] == children
    assert run.table_url is not None
    assert f"viewStateShareKey={run.run_id}" in run.table_url


def test_a_description_shows_the_run_s_pictures(experiment: str, client: MlflowClient):
    run = RunLogger.open_run(experiment, "one", kind="train")
    run.describe("Look: ![best](overlays.png), ![elsewhere](https://x.org/a.png)")
    note = client.get_run(run.run_id).data.tags["mlflow.note.content"]
    shown = f"![best](get-artifact?run_uuid={run.run_id}&path=overlays.png)"
    assert note == f"Look: {shown}, ![elsewhere](https://x.org/a.png)"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_is_found_again_however_it_ended(experiment: str, client: MlflowClient, status: str):
    name = "fold'1\" 50% é/x"
    first = RunLogger.open_run(experiment, name, kind="train")
    first.finish(status, "a reason")
    again = RunLogger.open_run(experiment, name, kind="train")
    assert (again.run_id, first.resumed, again.resumed) == (first.run_id, False, True)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    assert client.get_run(first.run_id).data.tags["glioray.reason"] == "a reason"
    again.finish()
    assert client.get_run(first.run_id).data.tags["glioray.reason"] == ""
    assert RunLogger.open_run(experiment, name, kind="evaluate").run_id != first.run_id


def test_trials_are_children_and_known_by_their_sweep(experiment: str, client: MlflowClient):
    sweeps = [RunLogger.open_run(experiment, name, kind="sweep") for name in ("a", "b")]
    trials = [
        RunLogger.open_run(experiment, "trial 0", kind="trial", parent_run_id=sweep.run_id)
        for sweep in sweeps
    ]
    retried = RunLogger.open_run(experiment, "trial 0", kind="trial", parent_run_id=sweeps[1].run_id)
    assert trials[0].run_id != trials[1].run_id == retried.run_id
    assert client.get_run(retried.run_id).data.tags["mlflow.parentRunId"] == sweeps[1].run_id


def test_the_younger_of_two_runs_made_at_once_gives_way(
    experiment: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    create = MlflowClient.create_run
    rivals: list[str] = []

    def _create_after_a_rival(self: MlflowClient, experiment_id: str, **settings: Any) -> Run:
        rivals.append(
            create(self, experiment_id, start_time=time.time_ns() // 1_000_000 - 1, **settings).info.run_id
        )
        return create(self, experiment_id, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", _create_after_a_rival)
        run = RunLogger.open_run(experiment, "same", kind="train")
    assert rivals == [run.run_id]
    assert run.resumed
    assert [left.info.run_id for left in client.search_runs([run.experiment_id])] == [run.run_id]


def test_a_deleted_run_is_made_anew(experiment: str, client: MlflowClient):
    first = RunLogger.open_run(experiment, "one", kind="train")
    client.delete_run(first.run_id)
    assert RunLogger.open_run(experiment, "one", kind="train").run_id != first.run_id


def test_an_experiment_in_the_trash_is_told(experiment: str, client: MlflowClient):
    client.delete_experiment(client.create_experiment(experiment))
    with pytest.raises(UsageError, match="is in MLflow's trash"):
        RunLogger.open_run(experiment, "one", kind="train")


def test_a_setting_that_changed_on_resume_is_kept_beside_the_first(
    experiment: str, client: MlflowClient, caplog: pytest.LogCaptureFixture
):
    RunLogger.open_run(experiment, "one", kind="train").log_params({"train": {"minutes": 5, "seed": 0}})
    again = RunLogger.open_run(experiment, "one", kind="train")
    with caplog.at_level(logging.WARNING, logger="glioray"):
        again.log_params({"train": {"minutes": 9, "seed": 0, "workers": 2}})
    stored = client.get_run(again.run_id).data
    assert stored.params == {"train.minutes": "5", "train.seed": "0", "train.workers": "2"}
    assert stored.tags["glioray.changed.train.minutes"] == "9"
    assert "train.minutes was 5 when the run began and is 9 now" in caplog.text


def test_names_that_mlflow_cannot_store_are_refused_before_anything_is_sent(
    experiment: str, client: MlflowClient
):
    run = RunLogger.open_run(experiment, "one", kind="train")
    with pytest.raises(UsageError, match="'dice#wt' is not a valid MLflow name"):
        run.log_metrics({"loss": 1.0, "dice#wt": 0.5}, step=0)
    with pytest.raises(UsageError, match="is not a path inside a run"):
        run.log_text("x", "../x.txt")
    assert client.get_run(run.run_id).data.metrics == {}


def test_what_the_server_refuses_does_not_stop_the_rest(
    experiment: str, client: MlflowClient, caplog: pytest.LogCaptureFixture
):
    run = RunLogger.open_run(experiment, "one", kind="train")
    client.delete_run(run.run_id)
    with caplog.at_level(logging.WARNING, logger="glioray"):
        run.log_metrics({"loss": 1.0}, step=0)
        client.restore_run(run.run_id)
        run.log_metrics({"loss": 0.5}, step=1)
        run.finish()
    assert [metric.step for metric in client.get_metric_history(run.run_id, "loss")] == [1]
    assert "MLflow refused 1 metrics" in caplog.text
    assert "ends without what MLflow did not take: 1 metrics" in caplog.text


def test_system_metrics_go_on_where_they_were(experiment: str, client: MlflowClient):
    for _ in range(2):
        run = RunLogger.open_run(experiment, "one", kind="train")
        with run.system_metrics(interval_s=60):
            pass
    history = client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")
    assert [metric.step for metric in history] == [0, 1]
    assert "system/system_memory_usage_percentage" in client.get_run(run.run_id).data.metrics


class _OwnServer:
    """A server of this file's own, which a test may stop and start again at its address."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._service = folder, services.start_mlflow(folder)
        self.address, self._is_up = self._service.address, True

    def stop(self) -> None:
        self._service.stop()
        self._is_up = False

    def start(self) -> None:
        if not self._is_up:
            self._service = services.start_mlflow(self._folder, port=int(self.address.rpartition(":")[2]))
            self._is_up = True


@pytest.fixture(scope="module")
def _own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_OwnServer]:
    server = _OwnServer(tmp_path_factory.mktemp("own") / "server")
    yield server
    server.stop()


@pytest.fixture
def own_server(_own_server: _OwnServer, monkeypatch: pytest.MonkeyPatch) -> _OwnServer:
    """A server of this file's own, which is up; requests that it does not answer are repeated at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    _own_server.start()
    return _own_server


def test_a_server_that_goes_and_comes_back_gets_everything_in_order(
    own_server: _OwnServer, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    address = own_server.address
    run = RunLogger.open_run(experiment, "one", kind="train", tracking_uri=address)
    run.log_metrics({"loss": 3.0}, step=0)
    own_server.stop()
    with caplog.at_level(logging.WARNING, logger="glioray"):
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_params({"late": 1})
        run.log_text("kept", "notes/a.txt")
        gone = tmp_path / "gone.txt"
        gone.write_text("still here")
        run.log_file(gone, "gone.txt")
        gone.unlink()
        run.log_metrics({"loss": 1.0}, step=2)
    assert caplog.text.count("cannot be reached") == 1

    own_server.start()
    run.log_metrics({"loss": 0.5}, step=3)
    client = MlflowClient(address)
    history = client.get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.5)]
    assert history[1].timestamp < history[3].timestamp, "a metric keeps the time at which it was measured"
    assert client.get_run(run.run_id).data.params == {"late": "1"}
    got = Path(client.download_artifacts(run.run_id, "", str(tmp_path)))
    assert (got / "notes" / "a.txt").read_text() == "kept"
    assert (got / "gone.txt").read_text() == "still here"


def test_a_run_that_ends_during_an_outage_says_what_is_lost(
    own_server: _OwnServer, experiment: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    run = RunLogger.open_run(experiment, "one", kind="train", tracking_uri=own_server.address)
    own_server.stop()
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, time_ns=time.time_ns)
    monkeypatch.setattr("glioray.engine.on_mlflow.runs.time", clock)
    run.log_metrics({"loss": 2.0}, step=1)
    with caplog.at_level(logging.WARNING, logger="glioray"):
        run.finish("FAILED", "out of memory")
    assert "ends without what MLflow did not take: 1 metrics; 1 tags" in caplog.text
    assert 5 <= sum(waits) <= 15, "it gives the server a few seconds to come back"
    assert f"could not end the run {run.run_id} as FAILED" in caplog.text


_PLAIN_PYTHON = """
import sys
sys.modules["glioray"] = None  # as where it is not installed
import mlflow.pyfunc, mlflow.pytorch, numpy, torch
uri, x, y = sys.argv[1], numpy.load(sys.argv[2]), numpy.load(sys.argv[3])
numpy.testing.assert_allclose(mlflow.pytorch.load_model(uri)(torch.from_numpy(x)).detach().numpy(), y, 1e-3, 1e-4)
numpy.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(x), y, 1e-3, 1e-4)
print("equal")
"""


def test_the_champion_loads_in_plain_mlflow(experiment: str, tmp_path: Path):
    import numpy as np

    net = _net()
    run = RunLogger.open_run(experiment, "one", kind="train")
    uri = log_model(run, _package(tmp_path / "p", net), net, torch.zeros(1, 4, 32, 32))
    assert uri == f"runs:/{run.run_id}/model"
    set_champion("plain", register_model("plain", run.run_id, {"recipe": "unet_small"}).rpartition("/")[2])
    x = torch.randn(3, 4, 48, 32)
    np.save(tmp_path / "x.npy", x.numpy())
    with torch.no_grad():
        np.save(tmp_path / "y.npy", net(x).numpy())
    command = [
        sys.executable,
        "-c",
        _PLAIN_PYTHON,
        "models:/plain@champion",
        tmp_path / "x.npy",
        tmp_path / "y.npy",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


def test_a_model_is_registered_once_promoted_and_fetched(
    experiment: str, client: MlflowClient, tmp_path: Path
):
    package = _package(tmp_path / "p", _net())
    run = RunLogger.open_run(experiment, "one", kind="train")
    with pytest.raises(ModelError, match="has logged no model"):
        register_model("m", run.run_id, {})
    assert champion("m") is None
    _log_small(run, package)
    first = register_model("m", run.run_id, {"recipe": "unet_small", "dice_wt": "0.70"})
    assert register_model("m", run.run_id, {"dice_wt": "0.71"}) == first
    version = client.get_model_version("m", first.rpartition("/")[2])
    assert (version.tags["glioray.run_id"], version.tags["recipe"], version.tags["dice_wt"]) == (
        run.run_id,
        "unet_small",
        "0.71",
    )
    assert version.tags["glioray.code_hash"] == code_hash()
    assert "Research use only" in version.description

    assert champion("m") is None
    set_champion("m", version.version)
    assert champion("m") == version.version
    assert resolve_version("models:/m@champion") == first
    for uri in ("models:/m@champion", first, f"runs:/{run.run_id}/model"):
        got = fetch_package(uri, tmp_path / "got")
        assert sorted(file.name for file in got.iterdir()) == ["model.json", "model.safetensors"]
        assert (got / "model.safetensors").read_bytes() == (package / "model.safetensors").read_bytes()


def test_a_model_has_metrics_a_card_and_a_place_in_the_models_tab(
    experiment: str, client: MlflowClient, tmp_path: Path
):
    net, run = _net(), RunLogger.open_run(experiment, "one", kind="train")
    for step in (1, 2):
        run.log_metrics({"dice_mean": 0.3 * step}, step=step)
    more: dict[str, Any] = {"kind": "segmentation", "dataset": ("brats/val", "0123"), "card": "A card."}
    for name, step in (("step-1", 1), ("model", 2)):
        package = _package(tmp_path / name, net, name)
        metrics = {"dice_mean": 0.3 * step}
        _log_small(run, package, name=name, step=step, metrics=metrics, **more)
    models = client.search_logged_models([run.experiment_id], "metrics.dice_mean > 0.2")
    assert {model.name: model.metrics[0].step for model in models} == {"step-1": 1, "model": 2}
    assert {model.model_type for model in models} == {"segmentation"}
    outputs = client.get_run(run.run_id).outputs.model_outputs
    assert sorted(output.step for output in outputs) == [1, 2]
    (best,) = (model for model in models if model.name == "model")
    assert (best.metrics[0].dataset_name, best.metrics[0].dataset_digest) == ("brats/val", "0123")
    history = client.get_metric_history(run.run_id, "dice_mean")
    assert [metric.step for metric in history] == [1, 2], (
        "the model's metrics are the run's, not further ones"
    )

    version = register_model("carded", run.run_id, {}).rpartition("/")[2]
    assert client.get_model_version("carded", version).tags["glioray.model_id"] == best.model_id
    assert client.get_model_version("carded", version).description == "A card."
    for _ in range(2):
        add_to_card("carded", version, "Compared", "Better.")
    register_model("carded", run.run_id, {"again": "1"})
    assert client.get_model_version("carded", version).description == "A card.\n\n## Compared\n\nBetter.\n"
    for uri in (f"models:/{best.model_id}", f"models:/carded/{version}", f"runs:/{run.run_id}/model"):
        assert logged_model_id(uri) == best.model_id
        assert json.loads((fetch_package(uri, tmp_path / "got") / "model.json").read_text()) == {
            "note": "model"
        }


def test_a_model_of_before_there_were_logged_models_is_still_read(
    experiment: str, client: MlflowClient, tmp_path: Path
):
    run = RunLogger.open_run(experiment, "one", kind="train")
    package = _package(tmp_path / "p", _net())
    client.log_artifacts(run.run_id, str(package), "model/glioray")
    for tag, value in (("model_path", "model"), ("model_digest", "0" * 12)):
        client.set_tag(run.run_id, f"glioray.{tag}", value)
    uri = register_model("older", run.run_id, {})
    for found in (uri, f"runs:/{run.run_id}/model"):
        assert logged_model_id(found) is None
        got = fetch_package(found, tmp_path / "got")
        assert (got / "model.safetensors").read_bytes() == (package / "model.safetensors").read_bytes()


def test_a_registered_model_never_changes_when_its_run_goes_on(experiment: str, tmp_path: Path):
    net = _net()
    run = RunLogger.open_run(experiment, "one", kind="train")
    first_uri = _log_small(run, _package(tmp_path / "p", net, "first"))
    first = register_model("going on", run.run_id, {})
    again = RunLogger.open_run(experiment, "one", kind="train")
    assert _log_small(again, tmp_path / "p") == first_uri
    second_uri = _log_small(again, _package(tmp_path / "p", net, "second"))
    second = register_model("going on", run.run_id, {})
    assert first != second
    for uri, note in ((first, "first"), (second, "second"), (first_uri, "first"), (second_uri, "second")):
        got = fetch_package(uri, tmp_path / "got")
        assert json.loads((got / "model.json").read_text()) == {"note": note}


def test_models_that_are_not_there_are_told(experiment: str, tmp_path: Path):
    run = RunLogger.open_run(experiment, "one", kind="train")
    run.log_text("x", "model/MLmodel")
    for uri, message in (
        ("models:/nowhere@champion", "has no 'models:/nowhere@champion'"),
        ("models:/nowhere/3", "has no 'models:/nowhere/3'"),
        ("runs:/0123456789abcdef/model", "has no run 0123456789abcdef"),
        (f"runs:/{run.run_id}/model", "holds no model.safetensors and model.json"),
    ):
        with pytest.raises(ModelError, match=message):
            fetch_package(uri, tmp_path)
    for uri in ("models:/m", "models:/m/latest", "models:/m@a/b"):
        with pytest.raises(UsageError, match="is not a model URI"):
            resolve_version(uri)
    with pytest.raises(ModelError):
        set_champion("nowhere", 1)


def test_a_checkpoint_in_a_bucket_is_fetched(bucket: str, tmp_path: Path):
    package = _package(tmp_path / "p", _net())
    storage = open_storage(f"s3://{bucket}/runs/one")
    for name in ("model.safetensors", "model.json"):
        storage.write(f"checkpoints/step-5/{name}", (package / name).read_bytes())
    storage.write("latest.json", b'{"checkpoint": "checkpoints/step-5"}')
    for uri in (f"s3://{bucket}/runs/one", f"s3://{bucket}/runs/one/checkpoints/step-5"):
        got = fetch_package(uri, tmp_path / "got")
        assert (got / "model.safetensors").read_bytes() == (package / "model.safetensors").read_bytes()


def test_nothing_touches_the_fluent_run(experiment: str):
    RunLogger.open_run(experiment, "one", kind="train").finish()
    assert mlflow.active_run() is None
