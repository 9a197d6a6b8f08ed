"""Runs, pictures and registered models in MLflow; the only room that imports it.

Everything goes through `MlflowClient` by run id: the fluent API's active run belongs to a process, and one
of ours may hold a sweep and its trials at once.
"""

import os

_SETTINGS = {
    # Where the data cannot leave, neither should counts of how it is used.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own patience is four minutes a call; a training loop would stand still at every epoch.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    # Standard output belongs to the jobs' JSON line.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A model package is executed nowhere: no pickle is ever loaded through MLflow.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)  # MLflow reads them late, so before its import is early enough
