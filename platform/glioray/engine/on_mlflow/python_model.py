"""MLflow runs this file to make the python_function of a logged model; it travels with the model, glioray beside it."""

import warnings

from mlflow.models import set_model

with warnings.catch_warnings():
    # MLflow asks for type hints, although the model has a signature.
    warnings.simplefilter("ignore")
    from glioray.engine.on_mlflow.package_model import PackageModel

set_model(PackageModel())
