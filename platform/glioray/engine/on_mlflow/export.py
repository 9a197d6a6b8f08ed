"""An MLflow model folder that plain MLflow loads, without pickle and without glioray."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from pathlib import Path

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from glioray.errors import ModelError

_log = logging.getLogger(__name__)

_AXES = ("batch", "channels", "height", "width")
_DYNAMIC = (0, 2, 3)


def save_export(net: torch.nn.Module, example: torch.Tensor, folder: Path, *, run_id: str) -> tuple[str, ...]:
    """Write the MLflow model folder of a network; return the names of its free input axes.

    The format is that of `torch.export` (pt2): a graph and its weights. Batch, height and width stay free where the
    graph allows it; its constraints (such as multiples of 16) become guards, so that another size fails loudly. If
    the graph fixes height or width, the signature and the model's metadata say so, and a warning is logged.

    Args:
        net: takes (B, C, H, W) and returns (B, K, H, W); is copied to the CPU and set to `eval`.
        example: an input (B, C, H, W) of the size that the network is for, whose values do not matter: how the network
            treats that size (such as padding) may become a guard. Zeros of its shape are stored as JSON.
        folder: is created.
        run_id: the run that trained the model.

    Raises:
        ModelError: the network cannot be exported, only for a fixed batch, or the export's output differs.
    """
    # torch.export would treat a size of 1 as a constant.
    rows = torch.zeros((max(2, len(example)), *example.shape[1:]), dtype=torch.float32)
    frozen = copy.deepcopy(net).cpu().eval()
    name = type(net).__name__
    try:
        program = _save(frozen, rows, folder, _DYNAMIC, run_id)
        free = _free_axes(program)
        if free != _DYNAMIC and 0 in free:
            shutil.rmtree(folder)
            program = _save(frozen, rows, folder, free, run_id)
    except Exception as error:  # torch.export raises whatever its tracing hits
        raise ModelError(
            f"{name} cannot be exported by torch.export ({_first_words(error)}); "
            "keep control flow that depends on the data out of its forward"
        ) from error
    if 0 not in free:
        raise ModelError(f"{name} can only be exported for batches of {len(rows)}; leave the batch axis free")
    names = _names(free)
    if free != _DYNAMIC:
        fixed = ", ".join(f"{_AXES[axis]} {rows.shape[axis]}" for axis in _DYNAMIC if axis not in free)
        _log.warning("the export of %s is fixed to %s; what may vary is %s", name, fixed, ", ".join(names))
    _check_equal(frozen, program, rows)
    return names


def _save(
    net: torch.nn.Module, rows: torch.Tensor, folder: Path, free: tuple[int, ...], run_id: str
) -> torch.export.ExportedProgram:
    """Write the folder with the axes `free` in the signature; return the program as read back."""
    with torch.no_grad():
        output = net(rows)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), _spec(rows, free))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), _spec(output, free))]),
    )
    versions = [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}", "numpy"]
    with warnings.catch_warnings():
        # MLflow imports its pyfunc module here, which warns about its own type hints.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
        mlflow.pytorch.save_model(
            net,
            folder,
            mlflow_model=Model(run_id=run_id, artifact_path="model"),
            signature=signature,
            input_example=rows.numpy(),
            serialization_format="pt2",
            pip_requirements=versions,
            metadata={"dynamic_axes": ", ".join(_names(free)), "input": "B, C, H, W", "output": "B, K, H, W"},
        )
    return torch.export.load(folder / "data" / "model.pt2")


def _free_axes(program: torch.export.ExportedProgram) -> tuple[int, ...]:
    (name,) = program.graph_signature.user_inputs
    sizes = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    return tuple(axis for axis in _DYNAMIC if isinstance(sizes[axis], torch.SymInt))


def _names(axes: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(_AXES[axis] for axis in axes)


def _spec(tensor: torch.Tensor, free: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-1 if axis in free else size for axis, size in enumerate(tensor.shape))


def _check_equal(net: torch.nn.Module, program: torch.export.ExportedProgram, rows: torch.Tensor) -> None:
    noise = torch.randn((3, *rows.shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = net(noise), program.module()(noise)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        worst = (found - expected).abs().max().item()
        raise ModelError(
            f"the export of {type(net).__name__} differs from it by {worst:.3g}; keep randomness out of eval mode"
        )


def _first_words(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:200].rstrip(" .:")
