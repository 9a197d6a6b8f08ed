"""Obstacles to local servers on this machine: proxies, long or odd paths, a home without rights.

Standard library only, since `infra/` and the jobs share it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from glioray.errors import UsageError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Unix socket paths end at 107 bytes (103 on macOS), and those of Ray's sessions have some 66 below their folder.
_MAX_SESSIONS = 36


def bypass_proxies(*hosts: str) -> None:
    """Exempt loopback from the proxies of the environment, for this process and those that it starts.

    Requests, urllib, botocore, curl and gRPC all read `no_proxy`; it also keeps what stands in `NO_PROXY`.

    Args:
        hosts: further addresses of this machine.
    """
    if not any(
        os.environ.get(name) for prefix in ("http", "https", "all", "grpc") for name in _cases(prefix)
    ):
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    exempt = [host for host in map(str.strip, given.split(",")) if host]
    if "*" not in exempt:
        exempt += [host for host in (*_LOOPBACK, *hosts) if host not in exempt]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(exempt)


def _cases(prefix: str) -> tuple[str, str]:
    return f"{prefix}_proxy", f"{prefix}_proxy".upper()


def find_temp(below: str = "ray") -> Path:
    """The folder for temporary files, or another one where it cannot hold Ray's sessions.

    Args:
        below: name of the folder that sessions are kept in.

    Raises:
        UsageError: there is none.
    """
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for folder in (given, "/tmp", "/var/tmp", "/dev/shm"):
        if _holds_sessions(Path(folder).absolute(), below):
            return Path(folder).absolute()
    raise UsageError(
        f"'{given}' cannot hold the sockets of Ray's sessions; set RAY_TMPDIR to a folder that can be written, with a "
        f"path of at most {_MAX_SESSIONS - len('/ray')} characters and no spaces"
    )


def _holds_sessions(folder: Path, below: str) -> bool:
    if len(os.fsencode(folder / below)) > _MAX_SESSIONS or _has_space(folder):
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def make_private_folder() -> Path:
    """A new folder of this user's alone, for sockets and sessions."""
    return Path(tempfile.mkdtemp(prefix="glioray-", dir=find_temp("glioray-12345678")))


def plain_python(folder: Path | None = None) -> str:
    """The path of this Python, or of a link to it in `folder` where the path has a space.

    Ray starts its workers by a line of shell in which it does not quote Python's path.

    Args:
        folder: by default a new one, which this process removes when it ends.
    """
    if not _has_space(sys.executable):
        return sys.executable
    if folder is None:
        folder = make_private_folder()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = folder / "python"
    link.symlink_to(sys.prefix, target_is_directory=True)
    return str(link / "bin" / Path(sys.executable).name)


def _has_space(path: str | Path) -> bool:
    return any(character.isspace() for character in str(path))


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK[0], 0))
        return int(probe.getsockname()[1])


def expand_path(text: str) -> Path:
    """An absolute path; `~` is the home.

    Raises:
        UsageError: there is no home.
    """
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(
            f"'{text}' is below the home of a user that has none; set HOME, or give another path"
        ) from error


def read_switch(name: str) -> bool:
    """Whether a variable of the environment is on; one that is empty or not set is off.

    Raises:
        UsageError: another word than 1, true, yes, on, 0, false, no, off.
    """
    text = os.environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("", "0", "false", "no", "off"):
        return False
    raise UsageError(f"{name} is '{text}'; expected 1 or 0")
