#!/usr/bin/env python3
"""Search learning rate, weight decay, loss weight, width and augmentation of a recipe, and register the best model.

ray job submit --working-dir . -- python jobs/tune_unet.py --data s3://bucket/brats --trials 32
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.cluster import check_shared, connect, default_concurrency, log_to_stderr
from glioray.storage import join_uri
from glioray.training.session import RunPlan
from glioray.tuning.search import SweepPlan, run_sweep

FLAGS = "data storage recipe run-name workers trials concurrent max-epochs minutes seed name experiment fold set dry-run"


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS)
    config = cli.resolve_config(args)
    cli.check_counts(args)
    if args.dry_run:
        return cli.answer_dry_run(config, trials=args.trials, concurrent=args.concurrent)
    log_to_stderr()
    data, storage = cli.data_uri(args), cli.storage_uri(args)
    tracking_uri = cli.tracking_address(storage)
    name = cli.default_run_name(args, config)
    connect()
    check_shared(storage, "--storage")
    manifest = cli.open_data(data, storage, seed=config.train.seed, fold=args.fold)
    result = run_sweep(
        SweepPlan(
            base=RunPlan(
                config=config,
                manifest=manifest,
                storage=join_uri(storage, name),
                run_name=name,
                tracking_uri=tracking_uri,
                experiment=args.experiment,
                kind="sweep",
            ),
            num_trials=args.trials,
            num_concurrent=args.concurrent or min(args.trials, default_concurrency(config.train.num_workers)),
            model_name=args.name,
        )
    )
    return cli.training_answer(result, run_name=name)


if __name__ == "__main__":
    cli.run_job(main)
