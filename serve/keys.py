#!/usr/bin/env python3
"""Make, list and remove API keys of the endpoint.

    python serve/keys.py add NAME --file keys.json
    python serve/keys.py list --file keys.json
    python serve/keys.py remove NAME --file keys.json

The file holds the SHA-256 of each key, so that a key cannot be read from it: it is printed once, when it is made. A
running endpoint takes a change of the file within seconds.
"""

import argparse
import os
import runpy
import secrets
import sys
from pathlib import Path
from typing import Any

runpy.run_path(str(Path(__file__).resolve().parents[1] / "jobs" / "_path.py"))

from glioray.cli.job import run_job
from glioray.errors import UsageError
from serve.api_keys import KEYS_VARIABLE, ApiKey, hash_key, read_keys, write_keys

_BYTES = 32


def main() -> dict[str, Any]:
    """Carry out the command line; the key that was made, or the names of the keys."""
    parser = argparse.ArgumentParser("keys.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=["add", "list", "remove"], help="what to do")
    parser.add_argument("name", nargs="?", help="of the key: who uses it")
    parser.add_argument("--file", help=f"where the keys are: a path or s3:// (default: {KEYS_VARIABLE})")
    parser.add_argument(
        "--per-minute", type=int, metavar="N", help="requests of the key in a minute, at most"
    )
    args = parser.parse_args()
    uri = args.file or os.environ.get(KEYS_VARIABLE)
    if not uri:
        raise UsageError(f"no file of keys; give --file, or set {KEYS_VARIABLE}")
    if args.verb == "list":
        return {"keys": {name: key.per_minute for name, key in read_keys(uri).items()}}
    if not args.name:
        raise UsageError(f"'{args.verb}' needs the name of a key; write it after '{args.verb}'")
    return _add(uri, args.name, args.per_minute) if args.verb == "add" else _remove(uri, args.name)


def _add(uri: str, name: str, per_minute: int | None) -> dict[str, Any]:
    if per_minute is not None and per_minute < 1:
        raise UsageError(f"--per-minute is {per_minute}; expected at least 1")
    keys = read_keys(uri, must_exist=False)
    if name in keys:
        raise UsageError(f"there is a key '{name}' in {uri}; remove it first, or choose another name")
    key = f"glioray_{secrets.token_urlsafe(_BYTES)}"
    write_keys(uri, {**keys, name: ApiKey(sha256=hash_key(key), per_minute=per_minute)})
    return {"name": name, "key": key}


def _remove(uri: str, name: str) -> dict[str, Any]:
    keys = read_keys(uri)
    if name not in keys:
        raise UsageError(f"no key '{name}' in {uri}; there are {', '.join(keys) or 'none'}")
    write_keys(uri, {other: key for other, key in keys.items() if other != name})
    return {"removed": name}


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        main()
    run_job(main)
