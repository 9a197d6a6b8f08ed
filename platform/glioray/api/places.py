"""Where a request's data, runs and tracking lie: URIs made absolute, and what the environment says for the rest."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glioray.errors import StorageError, UsageError
from glioray.storage import is_local, open_storage, sqlite_uri


def data_uri(uri: str | None) -> str:
    """The URI of the data, or of GLIORAY_DATA.

    Raises:
        UsageError: neither is given.
    """
    uri = uri or os.environ.get("GLIORAY_DATA")
    if not uri:
        raise UsageError(
            "no data given; give --data with a folder or s3://bucket/prefix, or set GLIORAY_DATA"
        )
    return absolute_uri(uri, "--data")


def storage_uri(uri: str | None) -> str:
    """The URI that runs are stored below: as given, or of GLIORAY_STORAGE, or ~/glioray."""
    return absolute_uri(uri or os.environ.get("GLIORAY_STORAGE") or "~/glioray", "--storage")


def out_uri(uri: str | None) -> str:
    """The URI that results are written to.

    Raises:
        UsageError: it is not given.
    """
    if not uri:
        raise UsageError("no place for the results; give --out with a folder or s3://bucket/prefix")
    return absolute_uri(uri, "--out")


def ready_out(uri: str | None) -> str:
    """`out_uri`, of a place that results can be written to.

    Raises:
        UsageError: it is not given, or nothing can be written there.
    """
    out = out_uri(uri)
    check_writable(out, "--out")
    return out


def absolute_uri(uri: str, flag: str) -> str:
    """The URI with a relative folder made absolute.

    Raises:
        UsageError: a relative folder inside a submitted job, where it would be a temporary copy.
    """
    if not is_local(uri):
        return uri.rstrip("/")
    if (
        os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
        and "working_dir" in os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]
    ):
        plain = uri.removeprefix("file://")
        if not Path(plain).expanduser().is_absolute():
            raise UsageError(
                f"{flag} is the relative folder '{uri}', which a submitted job would look for in its temporary copy "
                "of the working directory; give an absolute path or s3://bucket/prefix"
            )
    return open_storage(uri).uri


def model_source(uri: str | None, flag: str) -> str | None:
    """A model's URI with a relative folder made absolute; None stays None."""
    if uri is None or uri.startswith(("models:", "runs:", "https:", "http:")):
        return uri
    # Imported late: it brings torch.
    from glioray.engine.portable import shipped_models, split_hash

    place, _ = split_hash(uri)
    return uri if place in shipped_models() else absolute_uri(place, flag) + uri.removeprefix(place)


def choose_run_name(run_name: str | None, recipe: str) -> str:
    """The run's name as given, or one of recipe and time.

    Raises:
        UsageError: a name that cannot be a folder's.
    """
    name = run_name or f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"--run-name is '{name}'; use letters, digits, '-', '_' and '.'")
    return name


@contextmanager
def use_tracking(storage: str) -> Iterator[str]:
    """MLflow's address while a request is carried out: MLFLOW_TRACKING_URI, or a SQLite file beside the runs.

    Raises:
        UsageError: MLFLOW_TRACKING_URI is not set and the runs lie in a bucket, where no such file can be, or in a folder
            that cannot be written.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        yield given
        return
    if not is_local(storage):
        raise UsageError(
            "MLFLOW_TRACKING_URI is not set; point it at your MLflow server, or keep runs in a folder"
        )
    check_writable(storage, "--storage, by default GLIORAY_STORAGE or ~/glioray")
    Path(storage).mkdir(parents=True, exist_ok=True)
    address = sqlite_uri(Path(storage) / "mlflow.db")
    # MLflow makes the folder of the encoded address, which SQLAlchemy decodes.
    stray = Path(address.removeprefix("sqlite:///")).parent
    is_stray = not stray.exists()
    # Clients and local Ray's workers read it from the environment.
    os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        yield address
    finally:
        if given is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = given
        if is_stray:
            with contextlib.suppress(OSError):
                os.removedirs(stray)


def check_writable(uri: str, flag: str) -> None:
    """Refuse a place that nothing can be written to.

    Raises:
        UsageError: names the flag, the place and what the system or the store says.
    """
    try:
        open_storage(uri).check_writable()
    except StorageError as error:
        raise UsageError(f"{flag}: {error}") from error
