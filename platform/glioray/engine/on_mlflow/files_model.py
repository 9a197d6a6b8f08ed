"""The python_function of a logged model, made of code that travels with it; nothing is pickled."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import glioray
from glioray.engine.on_mlflow import PACKAGE
from glioray.engine.portable import SHIPPED_FOLDER
from glioray.engine.task import FilesModel

_FLAVOR = "python_function"
_CODE = Path(__file__).with_name("python_model.py")
_REQUIREMENTS = [
    "mlflow",
    "torch",
    "numpy",
    "scipy",
    "monai",
    "einops",
    "safetensors",
    "pydantic",
    "nibabel",
    "deflate",
    "isal",
    "boto3",
    "matplotlib",
    "pillow",
    "pandas",
    "fastapi",
    "python-multipart",
]
"""The packages that glioray imports to load a model and predict with it."""


def add_files_model(folder: Path, files: FilesModel, package: str) -> None:
    """Make the python_function of an MLflow model folder answer files, with glioray's code beside it.

    Where there is a network, it stays what `mlflow.pytorch.load_model` loads.

    Args:
        folder: of `save_export`, or without an MLmodel file.
        files: how the model answers.
        package: the subfolder with the model's package.
    """
    model = Model.load(folder) if (folder / "MLmodel").exists() else Model()
    model.signature = ModelSignature(
        inputs=Schema(
            [ColSpec(DataType.binary, name, required=needed) for name, needed in files.inputs.items()]
        ),
        outputs=Schema([ColSpec(DataType.binary, name) for name in files.outputs]),
        params=ParamSchema([_param(name, value) for name, value in files.options.items()]),
    )
    # The example is the network's; a case as JSON would be as large as the model.
    for name in ("input_example.json", "serving_input_example.json"):
        (folder / name).unlink(missing_ok=True)
    model.saved_input_example_info = None  # type: ignore[assignment]  # its own default
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        # MLflow imports its pyfunc module here, which warns about its own type hints, and about a model without any.
        warnings.filterwarnings("ignore", message=".*type hint", category=UserWarning)
        fresh = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            fresh,
            python_model=str(_CODE),
            code_paths=[str(Path(glioray.__file__).parent)],
            model_config={"load": files.load},
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS],
        )
        flavor = Model.load(fresh).flavors[_FLAVOR]
        # Models that come with glioray are larger than its code.
        left_out = shutil.ignore_patterns("MLmodel", "__pycache__", SHIPPED_FOLDER.name)
        shutil.copytree(fresh, folder, dirs_exist_ok=True, ignore=left_out)
    # Not by save_model's `artifacts`, which would copy the weights into a folder of its own.
    model.flavors[_FLAVOR] = {**flavor, "artifacts": {PACKAGE: {"path": package, "uri": package}}}
    model.save(folder / "MLmodel")


def _param(name: str, default: str | float | bool) -> ParamSpec:
    kinds = {str: DataType.string, float: DataType.double, bool: DataType.boolean}
    return ParamSpec(name, kinds[type(default)], default)
