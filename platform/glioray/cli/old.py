"""What the jobs share: flags, places, one JSON object on stdout, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from glioray.cases.manifest import Manifest
from glioray.cases.notes import collection_notes
from glioray.engine.on_ray.connect import disconnect
from glioray.engine.search import MODES
from glioray.errors import GliorayError, UsageError
from glioray.serialization import to_dict
from glioray.storage import is_local, open_storage
from glioray.tasks.segmentation.config import RunConfig
from glioray.tasks.segmentation.recipes import RECIPES
from glioray.tasks.superres.config import COLLAPSE_COMPONENTS, GanConfig
from glioray.tasks.superres.recipes import GAN_RECIPES

_FLAGS: dict[str, dict[str, Any]] = {
    "--data": {"metavar": "URI", "help": "folder, s3://bucket/prefix, or a manifest.json by prepare.py"},
    "--out": {"metavar": "URI", "help": "where results are written: a folder or s3://bucket/prefix"},
    "--storage": {
        "metavar": "URI",
        "help": "where runs keep their checkpoints (default: GLIORAY_STORAGE or ~/glioray)",
    },
    "--recipe": {
        "metavar": "NAME",
        "help": f"one of {', '.join(RECIPES)} (default: unet_small)",
    },
    "--net": {
        "metavar": "NAME[:OPTION=VALUE,…]",
        "help": "network in place of the recipe's, such as unetpp:width=32,deep_supervision=true",
    },
    "--loss": {"metavar": "NAME[:OPTION=VALUE,…]", "help": "loss in place of the recipe's"},
    "--optimizer": {
        "metavar": "NAME[:OPTION=VALUE,…]",
        "help": "optimiser in place of the recipe's, such as sgd:lr=0.01,schedule=poly",
    },
    "--run-name": {"metavar": "NAME", "help": "names the run; the same name goes on with it"},
    "--workers": {
        "metavar": "N",
        "type": int,
        "help": "data-parallel ranks of a training (default: the recipe's)",
    },
    "--trials": {
        "metavar": "N",
        "type": int,
        "default": 4,
        "help": "trials of the search (default: %(default)s)",
    },
    "--concurrent": {
        "metavar": "N",
        "type": int,
        "help": "trials at once (default: as many as there are CPUs or GPUs)",
    },
    "--mode": {
        "choices": MODES,
        "default": "search",
        "help": "search (one objective, with ASHA), pareto (quality against PSNR gain, or Dice against the arithmetic of "
        "a slice) or pbt (a population, whose budget is in epochs; default: %(default)s)",
    },
    "--point": {
        "metavar": "KEY=VALUE,…",
        "action": "append",
        "default": [],
        "help": "a trial to begin with: its differences from the recipe, such as optim_g.lr=0.01; may be repeated",
    },
    "--search": {
        "metavar": "KEY=VALUES",
        "action": "append",
        "default": [],
        "help": "search a setting beside, or in place of its entry in, the recipe's own space: log:LOW:HIGH, LOW:HIGH, "
        "int:LOW:HIGH or choices separated by commas, such as optim.lr=log:1e-4:1e-2 or net.options.width=16,32,48; "
        "'none' drops the recipe's own space; may be repeated",
    },
    "--max-epochs": {
        "metavar": "N",
        "type": int,
        "help": "epochs of a training; without --minutes, no time limit then",
    },
    "--minutes": {"metavar": "M", "type": float, "help": "training time; of a search, all trials together"},
    "--seed": {
        "metavar": "S",
        "type": int,
        "help": "seed of weights, order and augmentation (default: the recipe's)",
    },
    "--model": {
        "metavar": "URI",
        "help": "models:/NAME@alias, models:/NAME/VERSION, runs:/ID/model or a run's folder",
    },
    "--name": {
        "metavar": "NAME",
        "default": "glioray-unet",
        "help": "registered model (default: %(default)s)",
    },
    "--experiment": {
        "metavar": "NAME",
        "default": "glioray",
        "help": "MLflow experiment (default: %(default)s)",
    },
    "--fold": {
        "metavar": "K|all",
        "help": "validate on fold K and train on the others; 'all' trains on every case",
    },
    "--set": {
        "metavar": "KEY=VALUE",
        "action": "append",
        "default": [],
        "help": "override one setting of the recipe, such as optim.lr=0.001; may be repeated",
    },
    "--dry-run": {"action": "store_true", "help": "print the resolved config and end, without starting Ray"},
}

GAN_FLAGS: dict[str, dict[str, Any]] = {
    "recipe": {
        "metavar": "NAME",
        "help": f"one of {', '.join(GAN_RECIPES)} (default: mri_small)",
    },
    "segmenter": {
        "metavar": "URI",
        "help": "segmentation model that judges the end of a run: its Dice on what is super-resolved, beside that on "
        "bicubic images and on real ones",
    },
}
"""Flags that all super-resolution trainings have, for `parse_flags`."""


def parse_flags(
    description: str, names: str, argv: list[str] | None = None, **more: dict[str, Any]
) -> argparse.Namespace:
    """The flags named in `names` (such as "data storage dry-run") and those in `more`, parsed.

    A flag that is not understood ends the process with exit code 2 and one sentence.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for name in names.split():
        parser.add_argument(f"--{name}", **_FLAGS[f"--{name}"])
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser.parse_args(argv)


def run_job(main: Callable[[], dict[str, Any]]) -> NoReturn:
    """Run a job: its result as one JSON object, the last line of stdout; all else goes to stderr.

    Exits with 0; 1 when the job failed, 2 when it was asked for what cannot be. A result may name its own
    under "exit_code", which is then left out of the JSON.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        main()  # argparse prints to stdout, where help is looked for, and exits
    with _stdout_kept() as answer:
        try:
            result = main()
            code = result.pop("exit_code", 0)
            answer(json.dumps(result, default=str))
        except GliorayError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            print("error: interrupted; run again with the same --run-name to go on", file=sys.stderr)
            code = 130
    sys.exit(code)


@contextlib.contextmanager
def _stdout_kept() -> Iterator[Callable[[str], None]]:
    """Sends whatever libraries and workers print to stderr, and gives what writes to the real stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)

    def answer(line: str) -> None:
        disconnect()  # or a worker's last words would come after ours
        sys.stdout.flush()
        os.write(kept, f"{line}\n".encode())

    try:
        yield answer
    finally:
        sys.stdout.flush()
        os.close(kept)


def data_uri(args: argparse.Namespace) -> str:
    """The URI of `--data`, or of GLIORAY_DATA.

    Raises:
        UsageError: neither is given.
    """
    uri = args.data or os.environ.get("GLIORAY_DATA")
    if not uri:
        raise UsageError(
            "no data were named; give --data with a folder or s3://bucket/prefix, or set GLIORAY_DATA"
        )
    return absolute_uri(uri, "--data")


def storage_uri(args: argparse.Namespace) -> str:
    """The URI of `--storage`, of GLIORAY_STORAGE, or ~/glioray."""
    return absolute_uri(args.storage or os.environ.get("GLIORAY_STORAGE") or "~/glioray", "--storage")


def absolute_uri(uri: str, flag: str) -> str:
    """The URI with a relative folder made absolute.

    Raises:
        UsageError: a relative folder inside a submitted job, where it would be a temporary copy.
    """
    if not is_local(uri):
        return uri.rstrip("/")
    if (
        os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
        and "working_dir" in os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]
    ):
        plain = uri.removeprefix("file://")
        if not Path(plain).expanduser().is_absolute():
            raise UsageError(
                f"{flag} is the relative folder '{uri}', which a submitted job would look for in its temporary copy "
                "of the working directory; give an absolute path or s3://bucket/prefix"
            )
    return open_storage(uri).uri


def default_run_name(args: argparse.Namespace, config: RunConfig | GanConfig) -> str:
    """The name of `--run-name`, or one of recipe and time."""
    name: str = args.run_name or f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UsageError(f"--run-name is '{name}'; use letters, digits, '-', '_' and '.'")
    return name


def tracking_address(storage: str) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file beside the runs where it is not set.

    Raises:
        UsageError: it is not set and the runs are in a bucket, where there can be no such file.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        if not is_local(storage):
            raise UsageError(
                "MLFLOW_TRACKING_URI is not set; point it at your MLflow server, or keep runs in a folder"
            )
        Path(storage).mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{Path(storage) / 'mlflow.db'}"
        os.environ["MLFLOW_TRACKING_URI"] = address
    return address


def out_uri(args: argparse.Namespace) -> str:
    """The URI of `--out`.

    Raises:
        UsageError: it is not given.
    """
    if not args.out:
        raise UsageError("there is no place for the results; give --out with a folder or s3://bucket/prefix")
    return absolute_uri(args.out, "--out")


def check_counts(args: argparse.Namespace, names: str) -> None:
    """Raises: UsageError for a flag of `names` (such as "trials concurrent") whose number is below 1."""
    for name in names.split():
        value = getattr(args, name.replace("-", "_"))
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; expected at least 1")


def training_answer(result: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The result of a training job: `run_id`, `model`, `metrics`, `num_slices`, `slices_per_s` and the rest."""
    figures = result["metrics"]
    if "checkpoint" in more and os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:"):
        # A runs:/ URI in a file that other commands would have to be told of; the run's folder explains itself.
        result = {**result, "model": more["checkpoint"]}
    return {
        **result,
        "num_slices": int(figures["num_slices"]),
        "slices_per_s": figures["slices_per_s"],
        **more,
    }


def collapse_answer(metrics: dict[str, float]) -> dict[str, Any]:
    """What a super-resolution run's last validation says of collapse; a collapsed run is a job that failed.

    Returns: `collapse` ("healthy", "collapsed", or "unjudged" where there was no panel), `reason` (the component that
    the score comes from), and for a collapsed run `exit_code`.
    """
    if "collapse_score" not in metrics:
        return {"collapse": "unjudged", "reason": ""}
    reason = COLLAPSE_COMPONENTS[int(metrics["collapse_reason"])]
    if metrics["is_collapsed"]:
        return {"collapse": "collapsed", "reason": reason, "exit_code": 1}
    return {"collapse": "healthy", "reason": reason if metrics["collapse_score"] > 0 else ""}


def print_report(manifest: Manifest) -> None:
    """What a manifest holds, on stderr: a line a problem, then the counts and what the files do not tell."""
    for problem in manifest.problems:
        print(f"problem: {problem}", file=sys.stderr)
    for entry in manifest.cases:
        labels = ", ".join(f"{name} {count}" for name, count in entry.label_voxels.items()) or "no mask"
        size = " x ".join(str(n) for n in entry.shape)
        spacing = " x ".join(f"{mm:g}" for mm in entry.spacing_mm)
        print(
            f"{entry.case_id}: {size} at {spacing} mm, {entry.convention or 'unlabelled'}: {labels}",
            file=sys.stderr,
        )
    for name, ids in manifest.splits.items():
        print(f"{name}: {len(ids)} cases", file=sys.stderr)
    for note in collection_notes(manifest.cases):
        print(f"note: {note}", file=sys.stderr)


def answer_dry_run(config: RunConfig | GanConfig, **more: Any) -> dict[str, Any]:
    """What `--dry-run` prints."""
    return {"config": to_dict(config), **more}
