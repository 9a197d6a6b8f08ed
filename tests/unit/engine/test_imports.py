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


@pytest.mark.contracts
def test_a_worker_imports_nothing_that_only_reports_need():
    env = {**os.environ, "PYTHONPATH": str(Path(glioray.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", _WORKER], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
