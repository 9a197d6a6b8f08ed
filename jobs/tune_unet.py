#!/usr/bin/env python3
"""Search learning rate, weight decay, loss weight, width and augmentation of a recipe, and register the best model.

ray job submit --working-dir . -- python jobs/tune_unet.py --data s3://bucket/brats --trials 32
"""

from __future__ import annotations

import _path  # noqa: F401
from glioray.cli import old as cli
from glioray.engine.on_ray.connect import default_concurrency
from glioray.resolve import resolve_config
from glioray.sources import plan_run
from glioray.tasks.segmentation.search import SweepPlan, run_sweep

FLAGS = "data storage recipe net loss optimizer run-name workers trials concurrent max-epochs minutes seed name experiment fold set dry-run"


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS)
    config = resolve_config(args)
    cli.check_counts(args, "trials concurrent")
    if args.dry_run:
        return cli.answer_dry_run(config, trials=args.trials, concurrent=args.concurrent)
    plan = plan_run(args, config, "sweep")
    concurrent = args.concurrent or min(args.trials, default_concurrency(config.train.num_workers))
    result = run_sweep(
        SweepPlan(base=plan, num_trials=args.trials, num_concurrent=concurrent, model_name=args.name)
    )
    return cli.training_answer(result, run_name=plan.run_name)


if __name__ == "__main__":
    cli.run_job(main)
