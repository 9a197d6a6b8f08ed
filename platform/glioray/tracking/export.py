"""A network as an MLflow model folder that plain MLflow loads, without pickle and without glioray."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from pathlib import Path
from typing import Any

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
    """Write the MLflow model folder of a network; the names of the axes that its inputs may vary in.

    The format is `torch.export`'s (pt2): a graph and its weights. Batch, height and width are left free
    where the network's graph allows it; what it needs of them (a multiple of 16, say) stays in the graph
    as a guard, so that another size fails loudly. Where the graph fixes height or width, the signature
    says so, the model's metadata too, and the log carries a warning.

    Args:
        net: takes (B, C, H, W) and returns (B, K, H, W); is copied to the CPU and set to `eval`.
        example: an input (B, C, H, W), whose values do not matter. Its zeros lie in the folder as JSON, so
            that the smallest H, W that the network takes is the best.
        folder: is made.
        run_id: the run that the model comes from.

    Raises:
        ModelError: the network cannot be exported, only for a fixed batch, or the export's output differs.
    """
    # A size of 1 would be taken for a constant.
    rows = torch.zeros((max(2, len(example)), *example.shape[1:]), dtype=torch.float32)
    frozen = copy.deepcopy(net).cpu().eval()
    try:
        free = _free_axes(frozen, rows)
    except Exception as error:  # torch.export raises whatever its tracing met
        raise ModelError(
            f"{type(net).__name__} cannot be exported by torch.export ({_first_words(error)}); "
            "keep data-dependent control flow out of its forward"
        ) from error
    if 0 not in free:
        raise ModelError(
            f"{type(net).__name__} can be exported only for batches of {len(rows)}; leave the batch axis free"
        )
    names = tuple(_AXES[axis] for axis in free)
    if free != _DYNAMIC:
        fixed = ", ".join(f"{_AXES[axis]} {rows.shape[axis]}" for axis in _DYNAMIC if axis not in free)
        _log.warning(
            "the export of %s is fixed to %s; only %s may vary", type(net).__name__, fixed, ", ".join(names)
        )
    with torch.no_grad():
        output = frozen(rows)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), _spec(rows, free))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), _spec(output, free))]),
    )
    with warnings.catch_warnings():
        # MLflow imports its pyfunc room here, which warns of its own type hints.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
        mlflow.pytorch.save_model(
            frozen,
            folder,
            mlflow_model=Model(run_id=run_id, artifact_path="model"),
            signature=signature,
            input_example=rows.numpy(),
            serialization_format="pt2",
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                "numpy",
            ],
            metadata={
                "dynamic_axes": ", ".join(names),
                "input": "B, C, H, W",
                "output": "B, K, H, W (logits)",
            },
        )
    _check_equal(frozen, rows, folder)
    return names


def _free_axes(net: torch.nn.Module, rows: torch.Tensor) -> tuple[int, ...]:
    shapes = [dict.fromkeys(_DYNAMIC, torch.export.Dim.AUTO)]
    program = torch.export.export(net, (rows,), dynamic_shapes=shapes)
    placeholder = next(
        node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    sizes = placeholder.meta["val"].shape
    return tuple(axis for axis in _DYNAMIC if isinstance(sizes[axis], torch.SymInt))


def _spec(tensor: torch.Tensor, free: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-1 if axis in free else size for axis, size in enumerate(tensor.shape))


def _check_equal(net: torch.nn.Module, rows: torch.Tensor, folder: Path) -> None:
    loaded: Any = mlflow.pytorch.load_model(os.fspath(folder))
    noise = torch.randn((3, *rows.shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = net(noise), loaded(noise)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        worst = (found - expected).abs().max().item()
        raise ModelError(
            f"the export of {type(net).__name__} differs from it by {worst:.3g}; keep randomness out of eval mode"
        )


def _first_words(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:200].rstrip(" .:")
