"""The address of the server, and what is said when nothing answers."""

import pytest

from glioray.engine.on_mlflow.client import connect, shown, tracking_uri
from glioray.errors import StorageError, UsageError


def test_no_address_is_a_usage_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not set"):
        tracking_uri()


@pytest.mark.parametrize(
    "value", ["sqlite:///m.db", "sqlite://", "./mlruns", "file:///tmp/x", "http://", "databricks"]
)
def test_only_http_servers_and_absolute_sqlite_files_are_taken(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    with pytest.raises(UsageError, match="expected http"):
        tracking_uri()


def test_a_trailing_slash_does_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert tracking_uri() == "http://host:5000"


def test_a_closed_port_is_told_without_the_password(free_port: int):
    with pytest.raises(StorageError, match="connection refused") as caught:
        connect(f"http://me:secret@127.0.0.1:{free_port}", attempts=1)
    assert f"http://127.0.0.1:{free_port} does not answer" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_addresses_are_shown_without_credentials():
    assert shown("https://me:pa:ss@host/mlflow") == "https://host/mlflow"
    assert shown("http://host:5000") == "http://host:5000"
