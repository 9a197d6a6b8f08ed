"""The device and the precision of a network's arithmetic.

Whether bf16 gains on a CPU depends on its instructions, the network and the size of its input, and cannot be read off
the instructions alone: with AVX512-BF16 and without AMX, training in bf16 takes up to 1.45 times as long as in
float32. So `train.precision=auto` times a few steps of both, and the cache folder keeps the result.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glioray.engine.collectives import gather, is_first_rank
from glioray.serialization import fingerprint
from glioray.slices.cache import CacheConfig

_log = logging.getLogger(__name__)

_TIMED_STEPS = 3
_LEAST_GAIN = 1.05
"""How much faster than float32 bf16 must be to be chosen, since it rounds."""

Step = Callable[[str], object]
"""One step of what is timed, in the precision of that name."""

Agree = Callable[[str, str | None], str | None]
"""Takes a kind of work and the precision that a run would choose for it, or None if it has not chosen. Returns the one
that the first of the runs that it is compared with chose; None if none has."""


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, with its weights in channels-last layout for convolutions."""
    moved: Any = net
    return moved.to(device, memory_format=torch.channels_last)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """A context for the arithmetic of a network in "bf16" or "fp32", as `choose_precision` returns it."""
    assert precision in ("bf16", "fp32"), precision
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


def choose_precision(
    setting: str,
    device: torch.device,
    step: Step,
    *,
    work: str,
    identity: Any,
    shared: bool = False,
    agree: Agree | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The precision of some work, "bf16" or "fp32": the setting, or with "auto" the faster one on this device.

    On a GPU "auto" goes by its generation. On a CPU that has instructions for bf16, steps of both are timed, unless the
    cache folder has the result of an earlier time. Random numbers are drawn as if nothing had been timed. Ranks that
    share a choice take bf16 only if all have it.

    Args:
        setting: `train.precision`.
        device: of the network.
        step: takes a step of the work; called with both precisions. It must leave nothing behind.
        work: in a word, such as "training".
        identity: what the result depends on beside the machine: the network and the size of its input, as JSON.
        shared: whether all ranks call this at the same time: the first one's result then is everyone's.
        agree: for "auto", of runs that are compared and must have one precision.
        clock: seconds.
    """
    if setting != "auto":
        return setting

    def choose() -> str:
        return _choose_faster(device, step, work, identity, shared, clock)

    if agree is None:
        return choose()

    def ask(own: str | None) -> str | None:
        asks = not shared or is_first_rank()
        found: str | None = _from_first(agree(work, own) if asks else None, shared)
        return found

    own = None
    agreed = ask(None)
    if agreed is None:
        own = choose()
        agreed = ask(own)
    assert agreed is not None, "an answer to a run that has chosen"
    if agreed != own and (not shared or is_first_rank()):
        _log.info("precision of %s: %s, as the runs have that this one is compared with", work, agreed)
        if agreed == "bf16" and not has_bf16(device):
            _log.warning(
                "this machine has no instructions for bf16 and is slow in it; set train.precision=fp32"
            )
    return agreed


def _choose_faster(
    device: torch.device,
    step: Step,
    work: str,
    identity: Any,
    shared: bool,
    clock: Callable[[], float],
) -> str:
    """The faster precision on this device; arguments as for `choose_precision`."""
    # Asked of all: a rank that left here alone would leave the others waiting for its times.
    if not all(gather(has_bf16(device)) if shared else [has_bf16(device)]):
        return "fp32"
    if device.type != "cpu":
        return "bf16"
    key = fingerprint([_machine(), torch.__version__, torch.get_num_threads(), work, identity])
    path = Path(CacheConfig.from_environment().folder) / "precision" / f"{key}.json"
    seconds = _from_first(_read(path), shared)
    source = "as timed before"
    if seconds is None:
        with torch.random.fork_rng(devices=[]):
            own = _time_steps(step, clock)
        _write(path, own)
        seconds, source = _from_first(own, shared), "timed now"
    chosen = "bf16" if seconds["bf16"] * _LEAST_GAIN < seconds["fp32"] else "fp32"
    if shared and not is_first_rank():
        return chosen
    _log.info(
        "precision of %s: %s, %s (a step takes %.3f s in fp32, %.3f s in bf16)",
        work, chosen, source, seconds["fp32"], seconds["bf16"],
    )  # fmt: skip
    return chosen


def choose_inference_precision(
    setting: str,
    device: torch.device,
    infer: Callable[[Tensor], object],
    shape: Sequence[int],
    *,
    work: str,
    identity: Any,
    shared: bool = False,
    agree: Agree | None = None,
) -> str:
    """`choose_precision` of a network's forward pass.

    Args:
        setting, device, work, shared, agree: as for `choose_precision`.
        infer: takes a batch, channels last on the device; runs without gradients.
        shape: of a batch, (N, C, H, W).
        identity: the network and what else the result depends on beside `shape`, as JSON.
    """

    def step(precision: str) -> None:
        images = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0)).to(device)
        with torch.inference_mode(), autocast(device, precision):
            infer(images.contiguous(memory_format=torch.channels_last))

    return choose_precision(
        setting, device, step, work=work, identity=[*identity, tuple(shape)], shared=shared, agree=agree
    )


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes bf16 natively; emulated bf16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def _time_steps(step: Step, clock: Callable[[], float]) -> dict[str, float]:
    """Time steps of both precisions in turns, after one of each; the best of each, in seconds."""
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(1 + _TIMED_STEPS):
        for precision, found in times.items():
            began = clock()
            step(precision)
            if number:
                found.append(clock() - began)
    return {precision: min(found) for precision, found in times.items()}


def _from_first(value: Any, shared: bool) -> Any:
    return gather(value)[0] if shared else value


def _machine() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    # oneDNN can be kept from instructions that the machine has.
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    return [model or platform.processor(), platform.machine(), *limits]


def _read(path: Path) -> dict[str, float] | None:
    """The seconds of both precisions; None if the file is not there or not whole."""
    try:
        values = json.loads(path.read_text())
        return {precision: float(values[precision]) for precision in ("fp32", "bf16")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, seconds: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(seconds))
    except OSError as error:
        _log.warning(
            "the cache folder cannot keep which precision is faster (%s); it is timed each time", error
        )
