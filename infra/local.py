"""The verbs of `infra/local.sh`: a glioray of MLflow, Ray and, on request, an S3 server, on this machine alone.

What runs stands in `.glioray/state.json`; what a shell must know of it in `.glioray/env.sh`, which `.venv/bin/ray`
and an activated shell read, and which never overrides what the user has set.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import runpy
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

runpy.run_path(str(Path(__file__).resolve().parents[1] / "jobs" / "_path.py"))

from processes import Service, ServiceError, make_folder, write_secret
from services import start_mlflow, start_ray_head, start_s3

from glioray.errors import UsageError
from glioray.machine import bypass_proxies

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".glioray"
STATE = HOME / "state.json"
ENV = HOME / "env.sh"
PHANTOM = HOME / "phantom"
# Each of six kinds of tumour thrice, so that those held back are like those learned from.
NUM_PHANTOMS = 18
# What the services tell their clients, in groups: (variables by which a user points elsewhere, all that are set
# where he points nowhere). Half of one address and half of another would send a token to the wrong place.
GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"),
        (
            "RAY_API_SERVER_ADDRESS",
            "RAY_ADDRESS",
            "RAY_AUTH_MODE",
            "RAY_AUTH_TOKEN_PATH",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        ),
    ),
    (
        ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"),
        (
            "AWS_ENDPOINT_URL",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_REGION",
            "AWS_EC2_METADATA_DISABLED",
        ),
    ),
    (("MLFLOW_TRACKING_URI",), ("MLFLOW_TRACKING_URI",)),
    (("GLIORAY_DATA",), ("GLIORAY_DATA", "GLIORAY_RECIPE", "GLIORAY_GAN_RECIPE")),
    (("GLIORAY_STORAGE",), ("GLIORAY_STORAGE",)),
)
# What a job without flags works on: phantoms, with the recipe that suits them.
DEFAULTS = {
    "GLIORAY_DATA": str(PHANTOM),
    "GLIORAY_RECIPE": "unet_tiny",
    "GLIORAY_GAN_RECIPE": "mri_tiny",
    "GLIORAY_STORAGE": str(HOME / "storage"),
}
# Loopback is not reached through a proxy.
_EXEMPT = """\
case ",${no_proxy:-${NO_PROXY:-}}," in
  *,127.0.0.1,* | ",*,") ;;
  *) no_proxy="${no_proxy:-${NO_PROXY:-}}"; export no_proxy="${no_proxy:+$no_proxy,}127.0.0.1,localhost,::1" ;;
esac
export NO_PROXY="${no_proxy:-${NO_PROXY:-}}"
"""
# Names of the variables that env.sh has set in a shell, to tell them from the user's own.
MARK = "GLIORAY_LOCAL_VARIABLES"


def main(argv: list[str] | None = None) -> int:
    """Carry out one verb; the exit code is the shell's."""
    parser = argparse.ArgumentParser(prog="bash infra/local.sh", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    demo = verbs.add_parser("demo", help="from nothing to a served model on phantom data")
    demo.add_argument(
        "kind", nargs="?", choices=("unet", "gan"), default="unet", help="the model; unet by default"
    )
    test = verbs.add_parser("test", help="every check; further arguments go to pytest", allow_abbrev=False)
    test.add_argument("--quick", action="store_true", help="only the static checks and the unit tests")
    docs = verbs.add_parser("docs", help="build the documentation and serve it on a free loopback port")
    docs.add_argument("--build", action="store_true", help="only build it, into .glioray/site")
    start = verbs.add_parser("up", help="start MLflow and Ray on free loopback ports")
    start.add_argument("--s3", action="store_true", help="start an S3 server too")
    verbs.add_parser("down", help="end what was started")
    verbs.add_parser("status", help="what runs, and where")
    args, pytest_args = parser.parse_known_args(argv)
    if pytest_args[:1] == ["--"]:
        del pytest_args[0]
    if pytest_args and args.verb != "test":
        parser.error(f"unrecognized arguments: {' '.join(pytest_args)}")
    for name in os.environ.pop(MARK, "").split():
        os.environ.pop(name, None)
    bypass_proxies()
    try:
        if args.verb == "test":
            from checks import run_checks

            return run_checks(pytest_args, quick=args.quick)
        if args.verb == "docs":
            from documentation import build_site, serve_site

            return build_site() if args.build else serve_site()
        with _alone():
            if args.verb == "up":
                up(s3=args.s3)
                _print_status(load_state())
            elif args.verb == "down":
                down()
            elif args.verb == "status":
                _print_status(load_state())
            elif args.kind == "gan":
                from demo_gan import run_gan_demo

                run_gan_demo()
            else:
                from demo import run_demo

                run_demo()
    except (ServiceError, UsageError) as error:
        print(f"local.sh: {error}", file=sys.stderr)
        return 1
    return 0


def up(*, s3: bool = False) -> dict[str, Service]:
    """Start what does not run yet; returns the services by name."""
    services = load_state()
    wanted = {"mlflow", "ray"} | ({"s3"} if s3 else set())
    if wanted <= services.keys() and all(service.alive() for service in services.values()):
        print("already up")
        return services
    # Ray's drivers inherit the other services' addresses, so a missing one means that all start again.
    down(quiet=not services)
    make_folder(HOME)
    if make_phantoms():
        print(f"wrote {NUM_PHANTOMS} phantom cases to {PHANTOM.relative_to(ROOT)}", flush=True)
    services, env = {}, dict(DEFAULTS)
    try:
        if s3:
            _add(services, "s3", start_s3(HOME / "s3", ["data", "storage"]), env)
        _add(services, "mlflow", start_mlflow(HOME / "mlflow"), env)
        given = {name: value for name, value in env.items() if name not in _set_by_user()}
        # Redrawn bars of many workers hide a job's own lines.
        given["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
        _add(services, "ray", start_ray_head(HOME / "ray", env=given, cwd=ROOT), env)
    finally:
        _save_state(services)
    _write_env(env, services["ray"].pid)
    return services


def down(*, quiet: bool = False) -> None:
    """End what `up` started, and forget it."""
    services = load_state()
    for name, service in reversed(services.items()):
        if service.alive():
            print(f"ending {name}", flush=True)
        service.stop()
    if not services and not quiet:
        print("nothing to end")
    STATE.unlink(missing_ok=True)
    _write_env({}, None)


def load_state() -> dict[str, Service]:
    """The services that were started last, alive or not, in the order of their start."""
    if not STATE.exists():
        return {}
    return {name: _from_dict(values) for name, values in json.loads(STATE.read_text()).items()}


def client_env(services: dict[str, Service]) -> dict[str, str]:
    """The environment of a process that uses the services; what the user has set stays."""
    env = dict(DEFAULTS)
    for service in services.values():
        env |= service.env
    taken = _set_by_user()
    return {**os.environ, **{name: value for name, value in env.items() if name not in taken}}


def make_phantoms() -> bool:
    """Write the phantom data set unless it is there; says whether it wrote."""
    done = PHANTOM / ".complete"
    if done.exists() and done.read_text() == str(NUM_PHANTOMS):
        return False
    from glioray.cases.phantom import write_phantoms
    from glioray.storage import open_storage

    write_phantoms(open_storage(PHANTOM), num_cases=NUM_PHANTOMS)
    done.write_text(str(NUM_PHANTOMS))
    return True


def _set_by_user() -> set[str]:
    """Variables that the user's environment decides."""
    return {name for deciding, names in GROUPS for name in names if any(map(os.environ.get, deciding))}


def _write_env(env: dict[str, str], head_pid: int | None) -> None:
    """Write env.sh, with the S3 server's keys in it; without a head it only clears what an earlier one has set."""
    lines = [
        "# Written by infra/local.sh; sourced by .venv/bin/ray and by an activated shell. What an earlier version of",
        "# this file has set goes first; then nothing is set unless the cluster runs.",
        f'eval "unset ${{{MARK}:-}} {MARK}"',
    ]
    if head_pid is not None:
        lines += [f"kill -0 {head_pid} 2>/dev/null || return 0", _EXEMPT]
    for deciding, names in GROUPS:
        names = tuple(name for name in names if name in env)
        if names:
            unset = "".join(f"${{{name}:-}}" for name in deciding)
            lines += [f'if [ -z "{unset}" ]; then']
            lines += [f"  export {name}={shlex.quote(env[name])}" for name in names]
            lines += [f'  export {MARK}="${{{MARK}:-}} {" ".join(names)}"', "fi"]
    write_secret(ENV, "\n".join(lines) + "\n")


def _add(services: dict[str, Service], name: str, service: Service, env: dict[str, str]) -> None:
    services[name] = service
    env.update(service.env)
    print(f"{service.name}: {service.address}", flush=True)


def _save_state(services: dict[str, Service]) -> None:
    state = {name: dataclasses.asdict(service) for name, service in services.items()}
    write_secret(STATE, json.dumps(state, indent=2, default=str))


def _from_dict(values: dict[str, Any]) -> Service:
    return Service(**{**values, "log": Path(values["log"]), "scratch": tuple(map(Path, values["scratch"]))})


def _print_status(services: dict[str, Service]) -> None:
    if not services:
        print("nothing runs; `bash infra/local.sh up` starts MLflow and Ray")
        return
    for name, service in services.items():
        state = f"pid {service.pid}" if service.alive() else "has ended"
        print(f"{name:8} {service.address:28} {state:14} log {service.log.relative_to(ROOT)}")
    if all(service.alive() for service in services.values()):
        print("\nin this folder, with or without `. .venv/bin/activate`:")
        print("  .venv/bin/ray job submit jobs/tune_unet.py")
    else:
        print("\n`bash infra/local.sh up` starts all again")


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps a second `up`, `down` or `demo` of this folder waiting, so that neither loses the other's state."""
    make_folder(HOME)
    with (HOME / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another infra/local.sh in this folder", file=sys.stderr, flush=True)
            started = time.monotonic()
            fcntl.flock(stream, fcntl.LOCK_EX)
            print(f"went on after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        yield


if __name__ == "__main__":
    sys.exit(main())
