"""What the benchmarks share: the cases, alternating measurements, and how figures are reported."""

from __future__ import annotations

import json
import os
import runpy
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PLATFORM = Path(__file__).resolve().parents[2] / "platform"
runpy.run_path(str(PLATFORM.parent / "jobs" / "_path.py"))


def refuse(sentence: str) -> NoReturn:
    """End with a sentence, as bad usage."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def brats_folder() -> Path:
    """The folder of real BraTS 2021 cases."""
    value = os.environ.get("GLIORAY_REAL_DATA", "")
    if not value:
        refuse("needs real cases: set GLIORAY_REAL_DATA to the folder that holds brats2021/")
    folder = Path(value).resolve() / "brats2021"
    if not folder.is_dir():
        refuse(f"GLIORAY_REAL_DATA is '{value}', which holds no folder brats2021")
    return folder


def same_environment(settings: Mapping[str, str]) -> None:
    """Start this script again with variables that are read when a process begins, where they are not set."""
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def tell(
    figures: Mapping[str, Sequence[float]],
    ours: str,
    unit: str,
    *,
    more_is_better: bool,
    target: float,
    helped: Sequence[str] = (),
    **extra: Any,
) -> None:
    """Print a table of medians and spreads, and one JSON line with the ratio of ours to the best rival.

    Args:
        figures: name -> measurements, taken in turns.
        ours: which of the names is glioray's.
        unit: of the measurements.
        more_is_better: slices/s rather than seconds.
        target: the ratio to reach.
        helped: rivals that were given a part of ours; the ratio to the best of them is reported too.
        extra: further values for the JSON line.
    """
    medians = {name: statistics.median(values) for name, values in figures.items()}
    pick = max if more_is_better else min
    rival = pick((name for name in medians if name not in (ours, *helped)), key=medians.__getitem__)

    def ratio_to(name: str) -> float:
        quotient = medians[ours] / medians[name]
        return round(quotient if more_is_better else 1 / quotient, 2)

    width = max(map(len, figures))
    print(
        f"{'':{width}}  {'median':>10}  {'least':>10}  {'most':>10}  {unit}, {len(figures[ours])} measurements"
    )
    for name, values in figures.items():
        print(f"{name:{width}}  {medians[name]:10.4g}  {min(values):10.4g}  {max(values):10.4g}")
    print(f"{ours} is {ratio_to(rival)} times as fast as {rival}; the target is {target:g}")
    if helped:
        best = pick(helped, key=medians.__getitem__)
        extra["ratio_helped"] = ratio_to(best)
        print(f"and {extra['ratio_helped']} times as fast as {best}")
    command = " ".join(
        ["python", *(os.path.relpath(part) if part == sys.argv[0] else part for part in sys.argv)]
    )
    line = {
        "command": command,
        "cores": os.cpu_count(),
        "unit": unit,
        "medians": {name: float(f"{value:.4g}") for name, value in medians.items()},
        "measurements": len(figures[ours]),
        "rival": rival,
        "ratio": ratio_to(rival),
        "target": target,
        **extra,
    }
    print(json.dumps(line))
