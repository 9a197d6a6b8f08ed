"""The python_function of a logged model: files in, files out. Only `python_model.py` imports it, in MLflow."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.pyfunc import PythonModel

from glioray.engine.on_mlflow import PACKAGE
from glioray.errors import UsageError


class PackageModel(PythonModel):
    """Answers rows of files, each a column of bytes or of a path, with rows of files as bytes.

    MLflow's model server decodes base64 for columns of bytes, so that a request cannot name a path on the server.
    """

    def load_context(self, context: Any) -> None:
        module, _, name = str(context.model_config["load"]).partition(":")
        self._answer = getattr(importlib.import_module(module), name)(Path(context.artifacts[PACKAGE]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer each row.

        Args:
            context: of MLflow.
            model_input: a data frame, one row as a mapping, or a list of such rows; a cell is a file's bytes or path.
            params: the model's options.

        Raises:
            UsageError: a cell that is neither, or a path that cannot be read.
            CaseError: the files are no case.
        """
        rows = model_input
        if isinstance(model_input, pd.DataFrame):
            rows = model_input.to_dict("records")
        elif isinstance(model_input, Mapping):
            rows = [model_input]
        return pd.DataFrame([self._answer(_read_files(row), **(params or {})) for row in rows])


def _read_files(row: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a row; an empty cell is no file."""
    files = {}
    for name, cell in row.items():
        if isinstance(cell, bytes | bytearray):
            files[name] = bytes(cell)
        elif isinstance(cell, str | os.PathLike):
            try:
                files[name] = Path(cell).expanduser().read_bytes()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UsageError(
                    f"{name} is '{str(cell)[:200]}', which cannot be read ({reason}); give a file's bytes or its path"
                ) from error
        elif not pd.isna(cell):
            raise UsageError(f"{name} is a {type(cell).__name__}; give a file's bytes or its path")
    return files
