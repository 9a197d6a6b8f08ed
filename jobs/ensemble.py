#!/usr/bin/env python3
"""Join several models to one that answers with the mean of their probabilities, and register it.

    python jobs/ensemble.py --model s3://bucket/runs/fold0 --model s3://bucket/runs/fold1 --name glioray-unet
    python jobs/ensemble.py --model s3://bucket/runs/first --checkpoints --name glioray-unet

The members are alike but for their weights: the folds of a cross-validation, a run from several seeds, or, with
--checkpoints, what a run kept on its way (train.num_kept above 1).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.engine.on_mlflow.registry import register_model
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.on_ray.connect import log_to_stderr
from glioray.engine.run import log_package
from glioray.serialization import to_dict
from glioray.sources import member_uris
from glioray.tasks import load_task, open_labelling
from glioray.tasks.segmentation.package import join_packages

MODEL = {
    "metavar": "URI",
    "action": "append",
    "default": [],
    "help": "a member: models:/NAME@alias, models:/NAME/VERSION, runs:/ID/model or a run's folder; to be repeated",
}
CHECKPOINTS = {
    "action": "store_true",
    "help": "each --model is a run's folder, of which all checkpoints that it kept become members",
}


def main() -> dict[str, object]:
    flags = "name storage experiment run-name dry-run"
    args = cli.parse_flags(__doc__.splitlines()[0], flags, model=MODEL, checkpoints=CHECKPOINTS)
    cli.tracking_address(cli.storage_uri(args))
    log_to_stderr()
    members = member_uris(args.model, checkpoints=args.checkpoints)
    with tempfile.TemporaryDirectory() as folder:
        packages = [open_labelling(uri, Path(folder) / str(n)).folder for n, uri in enumerate(members)]
        package = Path(folder) / "ensemble"
        spec = join_packages(packages, package)
        answer = {"members": members, "num_members": spec.num_members}
        if args.dry_run:
            return cli.answer_dry_run(spec.config, **answer)
        name = cli.default_run_name(args, spec.config)
        tags = {
            "recipe": spec.config.recipe,
            "manifest_hash": spec.manifest_hash,
            "members": ", ".join(members),
        }
        logger = RunLogger.open_run(args.experiment, name, kind="ensemble")
        try:
            logger.log_params({**to_dict(spec.config), **answer})
            log_package(load_task("segmentation"), logger, package)
            model = register_model(args.name, logger.run_id, tags)
        except Exception as error:
            logger.finish("FAILED", str(error) or type(error).__name__)
            raise
        logger.finish()
    return {"run_id": logger.run_id, "model": model, "run_name": name, **answer}


if __name__ == "__main__":
    cli.run_job(main)
