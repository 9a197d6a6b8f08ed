"""The connection to an MLflow server, with failures as one-sentence errors."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import requests
from alembic.util.exc import CommandError
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from glioray.errors import StorageError, UsageError, first_line
from glioray.machine import bypass_proxies

_SQLITE = "sqlite:///"
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 15.0


def tracking_uri() -> str:
    """Return the server's address from MLFLOW_TRACKING_URI.

    Raises:
        UsageError: the variable is unset, or neither an http address nor a SQLite file.
    """
    return _checked(os.environ.get("MLFLOW_TRACKING_URI", ""))


def connect(uri: str | None = None, *, attempts: int = 3) -> MlflowClient:
    """Connect to the server at `uri` (default: MLFLOW_TRACKING_URI) and wait for its first answer.

    `sqlite:///path` is a file on this machine and needs no server.

    Raises:
        UsageError: no address, or neither http nor sqlite.
        StorageError: the server does not answer within seconds, or the file is no whole database of MLflow.
    """
    address = tracking_uri() if uri is None else _checked(uri)
    bypass_proxies()
    if address.startswith(_SQLITE):
        return _open_file(address)
    for attempt in range(attempts):
        cause = unreachable(address)
        if cause is None:
            return MlflowClient(tracking_uri=address, registry_uri=address)
        if attempt + 1 < attempts:
            time.sleep(1)
    raise StorageError(
        f"the MLflow server at {shown(address)} does not answer ({cause}); "
        "start it (bash infra/local.sh up) or correct MLFLOW_TRACKING_URI",
        True,
    )


def artifact_location(address: str) -> str | None:
    """Return where a new experiment stores its files: beside a SQLite file, or None to let the server decide."""
    if not address.startswith(_SQLITE):
        return None
    return (Path(unquote(address.removeprefix(_SQLITE))).parent / "mlartifacts").as_uri()


def page_url(address: str, page: str, **query: str) -> str | None:
    """Return the address of a page of MLflow's UI; None where a file holds the runs and no server shows them.

    Args:
        address: the server's.
        page: such as "experiments/1".
        **query: of the page.
    """
    return None if address.startswith(_SQLITE) else f"{shown(address)}/{page_link(page, **query)}"


def page_link(page: str, **query: str) -> str:
    """Return the link from one page of MLflow's UI to another, for descriptions.

    Without the type of work in it, MLflow 3.17 shows a newcomer the page for language models.
    """
    return f"#/{page}?{urlencode({'workflowType': 'machine_learning', **query})}"


def unreachable(address: str) -> str | None:
    """Return why no MLflow server answers at an address, in a few words; None if one does.

    The request is MLflow's own, so that its variables for certificates and credentials hold.
    """
    try:
        answer = http_request(
            get_default_host_creds(address.rstrip("/")),
            "/health",
            "GET",
            max_retries=0,
            timeout=(_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S),
            raise_on_status=False,
        )
    except (MlflowException, requests.RequestException) as error:
        return _short_cause(error)
    return f"HTTP status {answer.status_code}" if answer.status_code >= 500 else None


def is_outage(error: MlflowException | requests.RequestException) -> bool:
    """Return whether a retry may succeed: the server is down, overloaded or rejects our credentials."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        status = 503 if error.response is None else error.response.status_code
    return status >= 500 or status in (401, 403, 408, 429)


@contextmanager
def wrap_errors(what: str, client: MlflowClient) -> Iterator[None]:
    """Turn MLflow's exceptions inside the block into a StorageError: "could not {what}"."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise StorageError(
            f"MLflow at {shown(client.tracking_uri)} could not {what} ({first_line(error)}); "
            "check MLFLOW_TRACKING_URI, the server's log and your rights",
            is_outage(error),
        ) from error


def shown(address: str) -> str:
    """Strip user and password from an address, for messages."""
    return re.sub(r"//[^/@]*@", "//", address)


def _open_file(address: str) -> MlflowClient:
    """Open a SQLite file, which is made or brought up to date."""
    log = logging.getLogger("mlflow.store.db.utils")
    was_disabled, log.disabled = log.disabled, True  # it shows the traceback of what is raised
    try:
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    except (SQLAlchemyError, CommandError, MlflowException) as error:
        path = unquote(address.removeprefix(_SQLITE))
        raise StorageError(
            f"{path} is no whole database of MLflow ({first_line(error)}), as after a process that was killed while "
            "it made the file; move it away, or restore it from a copy"
        ) from error
    finally:
        log.disabled = was_disabled
    return client


def _checked(uri: str) -> str:
    if not uri:
        raise UsageError(
            "MLFLOW_TRACKING_URI is not set; start a server (bash infra/local.sh up prints its address) "
            "and export MLFLOW_TRACKING_URI=http://host:port"
        )
    if uri.startswith(f"{_SQLITE}/"):
        return uri
    if urlsplit(uri).scheme not in ("http", "https") or not urlsplit(uri).hostname:
        raise UsageError(
            f"MLFLOW_TRACKING_URI is '{shown(uri)}'; expected http://host:port or https://…, "
            "since workers on other machines must reach the same server, or sqlite:////path on one machine"
        )
    return uri.rstrip("/")


def _short_cause(error: Exception) -> str:
    text = str(error)
    for words in (
        "Connection refused",
        "Name or service not known",
        "Network is unreachable",
        "No route to host",
    ):
        if words in text:
            return words.lower()
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "its certificate cannot be verified: name the authority's file in MLFLOW_TRACKING_SERVER_CERT_PATH, or set "
            "MLFLOW_TRACKING_INSECURE_TLS=true"
        )
    if "resolve" in text or "name resolution" in text:
        return "the host name is not known"
    if "timed out" in text.lower() or "timeout" in text.lower():
        return "no answer in time"
    if "TLS CA certificate bundle" in text:
        return f"no certificates at MLFLOW_TRACKING_SERVER_CERT_PATH: {text.rpartition(': ')[2]}"
    return "no connection"
