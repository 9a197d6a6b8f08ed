"""What a process on a worker imports before it has anything to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glioray

# A rank, a trial and a worker on cases unpickle a function of these and a task.
_WORKER = """
import sys
import glioray.engine.on_ray.batch, glioray.engine.on_ray.train, glioray.engine.on_ray.trials
from glioray.tasks import TASKS, load_task

for name in TASKS:
    task = load_task(name)
    task.search, task.comparison
print(*(name for name in ("matplotlib", "mlflow", "monai") if name in sys.modules))
"""

# A task that asks a node's cache or copies into it, and one that checks cases.
_READERS = {
    "glioray.engine.on_ray.placement": ("torch", "pandas", "mlflow", "scipy.stats"),
    "glioray.engine.on_ray.data": ("torch", "mlflow", "scipy.stats"),
}


@pytest.mark.contracts
def test_a_worker_imports_nothing_that_only_reports_need():
    assert run(_WORKER) == ""


@pytest.mark.contracts
@pytest.mark.parametrize("module", _READERS)
def test_a_process_for_cases_is_quick_to_start(module: str):
    assert run(f"import sys, {module}; print(*{set(_READERS[module])} & sys.modules.keys())") == ""


def run(code: str) -> str:
    """What Python prints for a piece of code."""
    env = {**os.environ, "PYTHONPATH": str(Path(glioray.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
