"""Proxies, odd paths and half-set variables of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glioray import machine
from glioray.errors import UsageError

_PROXY_VARIABLES = [f"{name}_proxy" for name in ("http", "https", "all", "grpc", "no")]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*_PROXY_VARIABLES, *map(str.upper, _PROXY_VARIABLES), "RAY_TMPDIR", "TMPDIR"]:
        # Set first, so that what a test leaves is removed after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_loopback_is_exempt_from_proxies_and_what_was_exempt_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.bypass_proxies()
    assert "no_proxy" not in os.environ
    ours = "127.0.0.1,localhost,::1"
    for proxy, given, expected in (
        ("http_proxy", {}, ours),
        ("HTTPS_PROXY", {"NO_PROXY": "corp.example, localhost"}, "corp.example,localhost,127.0.0.1,::1"),
        ("all_proxy", {"no_proxy": "a,", "NO_PROXY": "b"}, f"a,{ours}"),
        ("http_proxy", {"no_proxy": "*"}, "*"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(proxy, "http://proxy:3128")
            for name in ("no_proxy", "NO_PROXY"):
                patch.setenv(name, given.get(name, ""))
            machine.bypass_proxies()
            machine.bypass_proxies()
            assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected
            machine.bypass_proxies("10.0.0.5")
            assert os.environ["no_proxy"] == (expected if expected == "*" else f"{expected},10.0.0.5")


def test_sessions_go_to_a_folder_that_can_hold_their_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert machine.find_temp() == Path("/tmp")
    file = tmp_path / "file"
    file.touch()
    for unfit in ("/tmp/" + 40 * "x", "/tmp/a b", "/tmp/é" + 20 * "é", f"{file}/below", "/proc/none"):
        for name in ("TMPDIR", "RAY_TMPDIR"):
            monkeypatch.setenv(name, unfit)
            assert machine.find_temp() == Path("/tmp"), unfit
            monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", "/var/tmp/none-yet")
    assert machine.find_temp() == Path("/var/tmp/none-yet")
    assert machine.find_temp("glioray-12345678") == Path("/var/tmp/none-yet")
    monkeypatch.setattr(machine, "_holds_sessions", lambda folder, below: False)
    with pytest.raises(UsageError, match=r"'/var/tmp/none-yet' cannot hold .* set RAY_TMPDIR to a folder"):
        machine.find_temp()


def test_a_python_below_a_path_with_a_space_gets_one_without(tmp_path: Path) -> None:
    home = tmp_path / "a b"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    code = "import sys; from glioray.machine import plain_python; print(plain_python()); input()"
    env = {**os.environ, "PYTHONPATH": str(Path(machine.__file__).parents[1])}
    process = subprocess.Popen(
        [home / "bin" / "python", "-c", code],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    plain = process.stdout.readline().strip()
    assert " " not in plain
    found = subprocess.run(
        [plain, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).resolve() == home.resolve()
    process.communicate("\n")
    assert not Path(plain).parents[2].exists()
    assert machine.plain_python() == sys.executable


def test_a_home_that_is_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/a/home")
    assert machine.expand_path("~/x") == Path("/a/home/x")

    def fail(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    with pytest.raises(UsageError, match="'~/x' is below the home of a user that has none; set HOME"):
        machine.expand_path("~/x")


def test_a_switch_is_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (
        ("1", True),
        ("True", True),
        (" yes ", True),
        ("", False),
        ("0", False),
        ("off", False),
    ):
        monkeypatch.setenv("GLIORAY_X", text)
        assert machine.read_switch("GLIORAY_X") is expected
    monkeypatch.setenv("GLIORAY_X", "maybe")
    with pytest.raises(UsageError, match="GLIORAY_X is 'maybe'; expected 1 or 0"):
        machine.read_switch("GLIORAY_X")
