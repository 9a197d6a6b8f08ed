"""The messages of `infra/local.sh`, and the gate that it runs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import checks
import local
import processes
import pytest

SERVICES = {
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
    "RAY_ADDRESS": "127.0.0.1:2",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "/a folder/it's/auth_token",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:3",
    "GLIORAY_DATA": "/data/phantom",
}
NAMES = (*SERVICES, "GLIORAY_LOCAL_VARIABLES")


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(local, "ENV", tmp_path / "env.sh")
    local._write_env(SERVICES, os.getpid())
    return tmp_path / "env.sh"


def _source(env_file: Path, **given: str) -> dict[str, str]:
    """What a strict shell has of `NAMES` after it read the file."""
    show = f"import json, os; print(json.dumps({{n: os.environ[n] for n in {NAMES} if n in os.environ}}))"
    script = 'set -eu; . "$1"; shift; exec "$@"'
    command = ["bash", "-c", script, "bash", str(env_file), sys.executable, "-c", show]
    env = {"PATH": os.environ["PATH"], **given}
    found = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert isinstance(found, dict)
    return found


def test_a_bare_shell_learns_everything(env_file: Path) -> None:
    found = _source(env_file)
    assert set(found.pop("GLIORAY_LOCAL_VARIABLES").split()) == set(SERVICES)
    assert found == SERVICES
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600


def test_what_the_user_points_at_stays_and_gets_no_token(env_file: Path) -> None:
    found = _source(env_file, RAY_ADDRESS="http://cluster:8265", MLFLOW_TRACKING_URI="http://mlflow:5000")
    assert found["RAY_ADDRESS"] == "http://cluster:8265"
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert not {"RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"} & found.keys()
    assert found["GLIORAY_DATA"] == SERVICES["GLIORAY_DATA"]


def test_a_mode_without_an_address_does_not_hide_the_cluster(env_file: Path) -> None:
    found = _source(env_file, RAY_AUTH_MODE="disabled")
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_API_SERVER_ADDRESS"] == SERVICES["RAY_API_SERVER_ADDRESS"]


def test_a_new_cluster_takes_the_place_of_the_one_before(env_file: Path) -> None:
    before = _source(env_file)
    local._write_env({**SERVICES, "RAY_ADDRESS": "127.0.0.1:9"}, os.getpid())
    assert _source(env_file, **before)["RAY_ADDRESS"] == "127.0.0.1:9"


def test_a_cluster_that_is_gone_leaves_nothing(env_file: Path) -> None:
    before = _source(env_file)
    local._write_env({}, None)
    assert _source(env_file, **before, GLIORAY_STORAGE="mine") == {}
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    local._write_env(SERVICES, int(ended.stdout))
    # `return` from the sourced file with nothing set.
    assert _source(env_file) == {}


def test_drivers_get_the_same_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = processes.Service(name="", address="", env=SERVICES, pid=1, started=0.0, log=tmp_path)
    assert SERVICES.items() <= local.client_env({"ray": service}).items() | {
        ("GLIORAY_DATA", "/data/phantom")
    }
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    env = local.client_env({"ray": service})
    assert env["RAY_ADDRESS"] == "elsewhere:1"
    assert "RAY_API_SERVER_ADDRESS" not in env


def test_state_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STATE", tmp_path / "state.json")
    service = processes.Service(
        name="x",
        address="y",
        env=SERVICES,
        pid=7,
        started=1.25,
        log=tmp_path / "log",
        scratch=(tmp_path / "s",),
    )
    assert local.load_state() == {}
    local._save_state({"ray": service})
    assert local.load_state() == {"ray": service}


@pytest.mark.parametrize(
    ("args", "code", "where"), [(["--help"], 0, "stdout"), ([], 2, "stderr"), (["dance"], 2, "stderr")]
)
def test_the_verbs_are_said(repo: Path, args: list[str], code: int, where: str) -> None:
    done = subprocess.run(["bash", "infra/local.sh", *args], cwd=repo, capture_output=True, text=True)
    assert done.returncode == code
    said = getattr(done, where)
    assert all(verb in said for verb in ("demo", "test", "docs", "up", "down", "status"))


@pytest.fixture
def clone(repo: Path, tmp_path: Path) -> Path:
    """The two shell scripts where they lie in a clone, whose Python shows how it was called."""
    root = tmp_path / "a clone's folder"
    (root / "infra").mkdir(parents=True)
    (root / ".venv" / "bin").mkdir(parents=True)
    shown = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "no_proxy")
    stub = root / ".venv" / "bin" / "python"
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"print(json.dumps([os.getcwd(), sys.argv[1:], {{n: os.environ[n] for n in {shown} if n in os.environ}}]))\n"
    )
    stub.chmod(0o755)
    for name, target in (
        ("local.sh", root / "infra" / "local.sh"),
        ("ray.sh", root / ".venv" / "bin" / "ray"),
    ):
        target.write_bytes((repo / "infra" / name).read_bytes())
        target.chmod(0o755)
    return root


def test_the_scripts_find_their_clone_however_they_are_called(clone: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    # `cd` prints, and goes there, where CDPATH has a folder of that name.
    for name in ("infra", ".venv/bin"):
        (elsewhere / name).mkdir(parents=True)
    for name in ("infra/local.sh", ".venv/bin/ray"):
        link = elsewhere / Path(name).name
        link.symlink_to(clone / name)
        args = ["status"] if "local" in name else ["status", "--x y"]
        for command, folder in (([clone / name], elsewhere), ([link], elsewhere), ([name], clone)):
            env = {"PATH": os.environ["PATH"], "CDPATH": str(elsewhere), "PYTHONHOME": "/none"}
            env |= {"PIP_USER": "1"} if "local" in name else {}
            done = subprocess.run(
                ["bash", *command, *args], cwd=folder, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            cwd, argv, variables = json.loads(done.stdout)
            expected = ["infra/local.py", *args] if "local" in name else ["-m", "ray.scripts.scripts", *args]
            assert (argv, variables) == (expected, {})
            assert cwd == str(clone if "local" in name else folder)
    assert not (elsewhere / ".venv" / "installed.txt").exists()


def test_a_cluster_on_loopback_is_not_reached_through_a_proxy(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / ".glioray").mkdir()
    monkeypatch.setattr(local, "ENV", clone / ".glioray" / "env.sh")
    local._write_env(SERVICES, os.getpid())
    ours = "127.0.0.1,localhost,::1"
    for given, expected in (
        ({}, ours),
        ({"no_proxy": "a,b"}, f"a,b,{ours}"),
        ({"NO_PROXY": "a"}, f"a,{ours}"),
        ({"no_proxy": "*"}, "*"),
        ({"no_proxy": f"x,{ours}"}, f"x,{ours}"),
    ):
        env = {"PATH": os.environ["PATH"], "http_proxy": "http://proxy:1", **given}
        command = [str(clone / ".venv" / "bin" / "ray"), "status"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)[2]["no_proxy"] == expected


def test_ray_without_a_cluster_says_what_to_do(repo: Path, tmp_path: Path) -> None:
    shim = tmp_path / ".venv" / "bin" / "ray"
    shim.parent.mkdir(parents=True)
    shim.write_bytes((repo / "infra" / "ray.sh").read_bytes())
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", str(shim), "job", "submit", "x.py"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "bash infra/local.sh up" in done.stderr


def test_a_submitted_job_says_the_commit_of_its_working_directory(clone: Path, tmp_path: Path) -> None:
    def git(*arguments: str, folder: Path = clone) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def submitted(*args: str) -> list[str]:
        env = {"PATH": os.environ["PATH"], "RAY_ADDRESS": "http://127.0.0.1:1"}
        command = [str(clone / ".venv" / "bin" / "ray"), "job", "submit", *args]
        done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=True)
        argv: list[str] = json.loads(done.stdout)[1]
        assert argv[:4] == ["-m", "ray.scripts.scripts", "job", "submit"]
        return argv[4:]

    entry = ["--", "python", "jobs/x.py", "--metadata-json", "--working-dir", "."]
    here = ["--working-dir", "."]
    assert submitted(*here, *entry) == [*here, *entry]
    marker = clone / "platform" / "glioray" / "commit.txt"
    marker.parent.mkdir(parents=True)
    marker.write_text("1\n")
    git("init", "-q")
    git("add", "platform")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    for given in (here, ["--working-dir=."], ["--no-wait", "--working-dir", str(clone)]):
        assert submitted(*given, *entry) == [
            "--metadata-json",
            json.dumps({"glioray.git_commit": head}),
            *given,
            *entry,
        ]
    marker.write_text("2\n")
    assert json.loads(submitted(*here, *entry)[1]) == {"glioray.git_commit": f"{head}-dirty"}
    other = tmp_path / "other project"
    other.mkdir()
    git("init", "-q", folder=other)
    git("commit", "-q", "--allow-empty", "-m", "one", folder=other)
    for given in (["--metadata-json", '{"a": "b"}', *here], ["--working-dir", str(other)], ["--no-wait"]):
        assert submitted(*given, *entry) == [*given, *entry]


@pytest.mark.parametrize("failing", ["", "ruff", "mypy", "lint-imports", "python", "pytest"])
def test_the_gate_runs_every_check_and_fails_with_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for tool in ("ruff", "mypy", "lint-imports", "python", "pytest"):
        script = tmp_path / tool
        script.write_text(f'#!/bin/sh\necho "ran {tool} $*"\nexit {int(tool == failing)}\n')
        script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert checks.run_checks(["-k", "name"]) == (1 if failing else 0)
    printed = capfd.readouterr().out
    ran = (
        "ruff format --check",
        "ruff check",
        "mypy -p glioray",
        "lint-imports",
        "python infra/local.py docs --build",
    )
    assert all(f"ran {command}" in printed for command in ran)
    *_, tests = [line for line in printed.splitlines() if line.startswith("ran ")]
    assert tests.startswith("ran pytest -n ")
    assert "--cov" in tests
    assert tests.endswith(" -k name")
    # pytest's own closing line is the last, unless a check has failed.
    assert printed.splitlines()[-1].startswith("failed: " if failing else "ran pytest")

    assert checks.run_checks(["-k", "name"], quick=True) == (1 if failing not in ("", "python") else 0)
    quick = capfd.readouterr().out
    assert "infra/local.py docs" not in quick
    assert "-m unit tests/unit -k name" in quick
    assert "--cov" not in quick


@pytest.mark.parametrize(
    ("args", "pytest_args", "quick"),
    [
        ([], [], False),
        (["--quick"], [], True),
        (["-k", "a or b", "tests/unit"], ["-k", "a or b", "tests/unit"], False),
        (["--quick", "-x", "--lf"], ["-x", "--lf"], True),
        (["--durations=20"], ["--durations=20"], False),
        (["--", "-x", "tests/unit"], ["-x", "tests/unit"], False),
    ],
)
def test_arguments_of_the_gate_go_to_pytest(
    monkeypatch: pytest.MonkeyPatch, args: list[str], pytest_args: list[str], quick: bool
) -> None:
    calls: list[tuple[list[str], bool]] = []

    def run_checks(arguments: list[str], *, quick: bool) -> int:
        calls.append((arguments, quick))
        return 7

    monkeypatch.setattr(checks, "run_checks", run_checks)
    assert local.main(["test", *args]) == 7
    assert calls == [(pytest_args, quick)]


def test_arguments_that_no_verb_has_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        local.main(["status", "--quick"])
    assert "unrecognized arguments: --quick" in capsys.readouterr().err
