"""Look the pinned packages up among published security advisories, with pip-audit; a step of the gate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
PINS = tuple(_FOLDER / name for name in ("constraints.txt", "no-deps.txt", "no-deps-panoptica.txt"))
# Advisories that do not concern us: id -> why.
ACCEPTED: dict[str, str] = {}
_UNREACHABLE = ("ConnectionError", "Could not connect", "Timeout")


def audit(files: Sequence[Path] = PINS, service: Sequence[str] = ()) -> int:
    """Print the advisories on the packages that requirement files pin; returns 1 if there is one, else 0.

    Without an advisory service, as on a machine without internet, it prints NOT AUDITED and returns 0: what cannot be
    looked up is no reason to fail. pip-audit itself calls that "no known vulnerabilities". If pip-audit fails for another
    reason, it returns 1.

    Args:
        files: with one `name==version` a line.
        service: pip-audit's own flags that name a service; by default it asks PyPI.
    """
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--desc",
        "off",
    ]
    command += ["--progress-spinner", "off", "--timeout", "10", *service]
    command += [word for file in files for word in ("-r", str(file))]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if not any(word in done.stderr for word in _UNREACHABLE):
            print(f"pip-audit failed: {reason}")
            return 1
        print(f"NOT AUDITED: the advisory service does not answer ({reason})")
        return 0
    packages = json.loads(done.stdout)["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        print(f"NOT AUDITED: the advisory service knows none of the {len(packages)} pinned packages")
        return 0
    found = [
        (package, advisory)
        for package in packages
        for advisory in package.get("vulns", ())
        if advisory["id"] not in ACCEPTED
    ]
    for package, advisory in found:
        mended = (
            f"mended in {', '.join(advisory['fix_versions'])}"
            if advisory["fix_versions"]
            else "not mended yet"
        )
        print(f"{package['name']} {package['version']}: {advisory['id']}, {mended}")
    print(f"{len(packages) - len(unknown)} of {len(packages)} packages looked up, advisories: {len(found)}")
    if unknown:
        print(f"not known to the service: {', '.join(unknown)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(audit())
