#!/usr/bin/env python3
"""Train one super-resolution GAN by a recipe, watched for collapse: tracked in MLflow, resumable by --run-name.

python jobs/train_gan.py --data s3://bucket/brats --recipe mri --workers 8 --run-name first
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.engine.on_ray.train import run_training
from glioray.resolve import resolve_gan_config
from glioray.sources import plan_run

FLAGS = "data storage run-name workers max-epochs minutes seed experiment fold set dry-run"
MORE = {
    **cli.GAN_FLAGS,
    "pretrained": {
        "metavar": "URI",
        "help": "super-resolution model whose PSNR generator the run begins with, in place of a stage of its own",
    },
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS, **MORE)
    config = resolve_gan_config(args)
    if args.dry_run:
        return cli.answer_dry_run(config)
    plan = plan_run(args, config, "train")
    result = run_training(plan)
    verdict = cli.collapse_answer(result["metrics"])
    return cli.training_answer(result, run_name=plan.run_name, checkpoint=plan.storage, **verdict)


if __name__ == "__main__":
    cli.run_job(main)
