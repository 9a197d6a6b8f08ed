"""Runs, figures and registered models in MLflow; no other package imports it.

Everything goes through `MlflowClient` by run id: the fluent API has one active run per process, and one of our
processes may write to a sweep and its trials at once.
"""

import os

PACKAGE = "package"
"""The artifact of a logged model's python_function that is the model's package."""

_SETTINGS = {
    # Hospital data must not leave the site, and neither should usage telemetry.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow retries for four minutes by default, which would block training at every epoch.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # Jobs print one JSON line to stdout; nothing else may.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Never load a pickle through MLflow: that would run its code.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(
        _name, _value
    )  # MLflow reads them when it is used, so setting them before its import is early enough
