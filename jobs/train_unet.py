#!/usr/bin/env python3
"""Train one U-Net by a recipe on the data of --data: tracked in MLflow, resumable by --run-name.

python jobs/train_unet.py --data s3://bucket/brats --recipe unet_brats --workers 8 --run-name first
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.engine.on_ray.train import run_training
from glioray.resolve import resolve_config
from glioray.sources import plan_run

FLAGS = "data storage recipe net loss optimizer run-name workers max-epochs minutes seed experiment fold set dry-run"


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS)
    config = resolve_config(args)
    if args.dry_run:
        return cli.answer_dry_run(config)
    plan = plan_run(args, config, "train")
    result = run_training(plan)
    return cli.training_answer(result, run_name=plan.run_name, checkpoint=plan.storage)


if __name__ == "__main__":
    cli.run_job(main)
