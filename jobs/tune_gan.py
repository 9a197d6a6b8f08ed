#!/usr/bin/env python3
"""Search the rates, weights and adversarial loss of a super-resolution GAN; what collapses is stopped and never wins.

ray job submit --working-dir . -- python jobs/tune_gan.py --data s3://bucket/brats --trials 32
"""

from __future__ import annotations

import _path  # noqa: F401
from glioray.cli import old as cli
from glioray.engine.on_ray.connect import default_concurrency
from glioray.engine.on_ray.search import run_sweep
from glioray.engine.search import SweepPlan, check_sweep
from glioray.engine.space import format_space, parse_space
from glioray.resolve import parse_settings, resolve_gan_config
from glioray.sources import plan_run
from glioray.tasks import load_task

FLAGS = "data storage run-name trials concurrent mode point search max-epochs minutes seed experiment fold set dry-run"
MORE = {
    **cli.GAN_FLAGS,
    "pretrained": {
        "metavar": "URI",
        "help": "super-resolution model whose PSNR generator all trials begin with (default: one is trained first)",
    },
    "name": {
        "metavar": "NAME",
        "default": load_task("superres").registered_name,
        "help": "registered model (default: %(default)s)",
    },
    "use_weight": {
        "metavar": "W",
        "type": float,
        "help": "of the segmenter's gain in Dice over bicubic images in the objective (default: 0)",
    },
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS, **MORE)
    config = resolve_gan_config(args)
    cli.check_counts(args, "trials concurrent")
    points = tuple(parse_settings(text.split(","), "--point") for text in args.point)
    custom = parse_space(args.search)
    space = check_sweep(
        load_task(config.task), config, num_trials=args.trials, mode=args.mode, points=points, custom=custom
    )
    if args.dry_run:
        return cli.answer_dry_run(
            config, trials=args.trials, mode=args.mode, points=points, space=format_space(space)
        )
    plan = plan_run(args, config, "sweep")
    concurrent = args.concurrent or min(args.trials, default_concurrency(config.train.num_workers))
    sweep = SweepPlan(
        base=plan, num_trials=args.trials, num_concurrent=concurrent, model_name=args.name, mode=args.mode,
        points=points, custom=custom,
    )  # fmt: skip
    return cli.training_answer(run_sweep(sweep), run_name=plan.run_name)


if __name__ == "__main__":
    cli.run_job(main)
