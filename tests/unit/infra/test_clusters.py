"""The files of infra/clusters: by Ray's own schema, and the Slurm script with stand-ins for Slurm and Ray."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "infra" / "clusters"
SLURM = FOLDER / "slurm.sh"
LAUNCHED = sorted(path.name for path in FOLDER.glob("*.yaml"))
_START_FLAGS = {flag for parameter in start.params for flag in parameter.opts}


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return config


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_takes_the_file(name: str) -> None:
    validate_config(prepare_config(_config(name)))
    with pytest.raises(Exception, match="'worker' was unexpected"):
        validate_config(prepare_config({**_config(name), "worker": {}}))


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_have_the_image_the_token_and_a_dashboard_on_loopback(name: str) -> None:
    config = _config(name)
    text = (FOLDER / name).read_text()
    images = set(re.findall(r"/(glioray:\w+)", text))
    built = set(re.findall(r"-t (\S+)", (ROOT / "infra" / "docker" / "Dockerfile").read_text()))
    assert images == built == {"glioray:cpu", "glioray:gpu"}
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    for line in (head, *config["worker_start_ray_commands"]):
        assert set(re.findall(r"--[\w-]+", line)) <= _START_FLAGS
    code = "".join(path.read_text() for path in (ROOT / "platform").rglob("*.py"))
    for variable in re.findall(r"--env (\w+)=", text):
        assert f'"{variable}"' in code
    assert not re.search(r"(?i)(secret|password|token)[\w-]*[=:] *['\"]?\w{8}", text)


_FAKES = {
    "scontrol": "printf 'n1\\nn2\\nn3\\n'",
    # Runs the command on this machine, as if on the nodes that it names.
    "srun": """
flags=()
while [[ $1 == --* ]]; do flags+=("$1"); shift; done
echo "srun ${flags[*]} -- $*" >> "$CALLS"
exec "$@"
""",
    "hostname": "echo 10.0.0.1",
    "ray": """
case "$1" in
  start) trap 'echo "end $*" >> "$CALLS"; exit 0' TERM; echo $$ >> "$PIDS"; while :; do sleep 0.05; done ;;
  list) while [ "$(cat "$PIDS" 2>/dev/null | wc -l)" -lt 2 ]; do sleep 0.05; done; echo "$JOINED" ;;
  job) echo "ray $* as $RAY_AUTH_MODE at $RAY_API_SERVER_ADDRESS" >> "$CALLS"; stat -c %a "$RAY_AUTH_TOKEN_PATH" >> "$CALLS"; exit "${JOB_STATUS:-0}" ;;
esac
""",
}


def _submit(folder: Path, *command: str, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script as on the first of three nodes; what it did, in order, and its end."""
    tools = folder / "bin"
    tools.mkdir()
    for name, body in _FAKES.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder),
        "CALLS": str(folder / "calls"),
        "PIDS": str(folder / "pids"),
        # As Ray writes it: all nodes in one line.
        "JOINED": json.dumps([{"node_id": number, "state": "ALIVE"} for number in range(3)]),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_CPUS_PER_TASK": "16",
        **env,
    }
    done = subprocess.run(
        ["bash", str(SLURM), *command], env=environment, capture_output=True, text=True, timeout=60
    )
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def _nothing_is_left(folder: Path) -> bool:
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    assert len(pids) == 2
    return not any(Path(f"/proc/{pid}").exists() for pid in pids) and not list((folder / ".ray").iterdir())


@pytest.mark.contracts
def test_slurm_starts_the_nodes_submits_and_ends_its_own(tmp_path: Path) -> None:
    done, calls = _submit(tmp_path, "jobs/train_unet.py", "--data", "s3://b/d", "--run-name", "two words")
    assert done.returncode == 0, done.stderr
    started = [call for call in calls if "ray start" in call]
    assert len(started) == 2
    head, others = sorted(started, key=lambda call: "--head" not in call)
    assert "--nodelist=n1 " in head
    assert "--nodes=2 " in others
    assert "--nodelist=n2,n3 " in others
    assert "--address=10.0.0.1:29422" in others
    for call in started:
        flags = shlex.split(call.partition(" -- ")[2])
        assert {flag.partition("=")[0] for flag in flags if flag.startswith("--")} <= _START_FLAGS
    (job,) = [number for number, call in enumerate(calls) if call.startswith("ray job submit")]
    assert "python jobs/train_unet.py --data s3://b/d --run-name two words" in calls[job]
    assert calls[job].endswith("as token at http://127.0.0.1:29423")
    # Its token is for its owner alone, and the workers end before the head.
    assert calls[job + 1] == "600"
    ends = [call for call in calls[job:] if call.startswith("end")]
    assert ["--head" in call for call in ends] == [False, True]
    assert _nothing_is_left(tmp_path)


@pytest.mark.contracts
def test_slurm_passes_a_failed_jobs_status_on(tmp_path: Path) -> None:
    done, _ = _submit(tmp_path, "jobs/train_unet.py", JOB_STATUS="3")
    assert done.returncode == 3
    assert _nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("command", "env", "sentence"),
    [
        (["jobs/train_unet.py"], {"SLURM_JOB_ID": ""}, "submit this script by sbatch"),
        ([], {}, "no job was given"),
        (["jobs/nothing.py"], {}, "there is no jobs/nothing.py"),
    ],
)
def test_slurm_refuses_in_a_sentence(
    tmp_path: Path, command: list[str], env: dict[str, str], sentence: str
) -> None:
    done, calls = _submit(tmp_path, *command, **env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert calls == []
