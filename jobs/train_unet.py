#!/usr/bin/env python3
"""Train one U-Net by a recipe on the data of --data: tracked in MLflow, resumable by --run-name.

python jobs/train_unet.py --data s3://bucket/brats --recipe unet_brats --workers 8 --run-name first
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.cluster import check_shared, connect, log_to_stderr, run_training
from glioray.storage import join_uri
from glioray.training.session import RunPlan

FLAGS = "data storage recipe run-name workers max-epochs minutes seed experiment fold set dry-run"


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS)
    config = cli.resolve_config(args)
    if args.dry_run:
        return cli.answer_dry_run(config)
    log_to_stderr()
    data, storage = cli.data_uri(args), cli.storage_uri(args)
    tracking_uri = cli.tracking_address(storage)
    name = cli.default_run_name(args, config)
    connect()
    check_shared(storage, "--storage")
    manifest = cli.open_data(data, storage, seed=config.train.seed, fold=args.fold)
    result = run_training(
        RunPlan(
            config=config,
            manifest=manifest,
            storage=join_uri(storage, name),
            run_name=name,
            tracking_uri=tracking_uri,
            experiment=args.experiment,
        )
    )
    return cli.training_answer(result, run_name=name, checkpoint=join_uri(storage, name))


if __name__ == "__main__":
    cli.run_job(main)
