"""Finds the packages of this repository; a script imports it before anything else."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
for _folder in (_ROOT, _ROOT / "platform"):
    sys.path.insert(0, str(_folder))
