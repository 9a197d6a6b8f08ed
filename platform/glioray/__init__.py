"""glioray: brain-tumour MRI from NIfTI in a bucket to a served model, on Ray.

    import glioray

    case = glioray.load_case("brats/BraTS2021_00000")
    result = glioray.train(data="brats", recipe="unet_small", minutes=10)
    mask = result.model.predict(case)

Everything here is imported when it is first used. Errors are those of `glioray.errors`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from glioray.api.calibrate import calibrate
    from glioray.api.cases import load_case
    from glioray.api.compare import compare
    from glioray.api.ensemble import ensemble
    from glioray.api.evaluate import evaluate
    from glioray.api.models import LoadedModel, load_model
    from glioray.api.predict import predict
    from glioray.api.prepare import prepare
    from glioray.api.promote import promote
    from glioray.api.share import share
    from glioray.api.train import train
    from glioray.api.tune import tune
    from glioray.cases.load import Case
    from glioray.client import AsyncClient, Client
    from glioray.errors import GliorayError

_MODULES = {
    "AsyncClient": "glioray.client",
    "Case": "glioray.cases.load",
    "Client": "glioray.client",
    "GliorayError": "glioray.errors",
    "LoadedModel": "glioray.api.models",
    "calibrate": "glioray.api.calibrate",
    "compare": "glioray.api.compare",
    "ensemble": "glioray.api.ensemble",
    "evaluate": "glioray.api.evaluate",
    "load_case": "glioray.api.cases",
    "load_model": "glioray.api.models",
    "predict": "glioray.api.predict",
    "prepare": "glioray.api.prepare",
    "promote": "glioray.api.promote",
    "share": "glioray.api.share",
    "train": "glioray.api.train",
    "tune": "glioray.api.tune",
}

__all__ = [
    "AsyncClient",
    "Case",
    "Client",
    "GliorayError",
    "LoadedModel",
    "__version__",
    "calibrate",
    "compare",
    "ensemble",
    "evaluate",
    "load_case",
    "load_model",
    "predict",
    "prepare",
    "promote",
    "share",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'glioray' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
