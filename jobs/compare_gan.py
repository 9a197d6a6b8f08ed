#!/usr/bin/env python3
"""Compare super-resolution GANs on the same data: SRGAN against ESRGAN at an equal budget, over seeds.

    python jobs/compare_gan.py --data s3://bucket/brats --recipe mri_small --minutes-each 10 --seeds 3 \
        --entrants srgan_small,esrgan_small,esrgan_small:optim_g.lr=0.001

--recipe is what all entrants share (slices, degradation, batches, judge); an entrant has its own networks, losses and
optimisers. The same --run-name resumes with the missing runs, and may add entrants. A run that collapses or diverges
has lost. If a run failed for another reason, the exit code is 1 and the same command repeats it.
"""

from __future__ import annotations

import _path  # noqa: F401
from glioray.cli import old as cli
from glioray.config import with_settings
from glioray.engine.comparison import ComparisonPlan
from glioray.engine.entrants import budget_settings, budget_text, split_names
from glioray.engine.on_ray.compare import run_comparison
from glioray.engine.on_ray.connect import default_concurrency
from glioray.resolve import resolve_gan_config, resolve_gan_entrants
from glioray.sources import plan_run

FLAGS = "data storage out run-name workers concurrent seed experiment fold set dry-run"
MORE = {
    **cli.GAN_FLAGS,
    "entrants": {
        "metavar": "A,B:KEY=VALUE,…",
        "default": "srgan_small,esrgan_small,esrgan_small_rmsprop",
        "help": "super-resolution recipes, with settings of their own (default: %(default)s)",
    },
    "seeds": {"metavar": "N", "type": int, "default": 3, "help": "runs an entrant (default: %(default)s)"},
    "minutes_each": {
        "metavar": "M",
        "type": float,
        "help": "budget of each run, in minutes; validation counts",
    },
    "slices_each": {"metavar": "N", "type": int, "help": "budget of each run, in slices learned from"},
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS, **MORE)
    args.max_epochs = args.minutes = None
    ground = resolve_gan_config(args)
    cli.check_counts(args, "concurrent seeds slices-each")
    each = {"minutes": args.minutes_each, "num_slices": args.slices_each}
    budget = budget_text(ground, **each)
    limited = with_settings(ground, budget_settings(ground, **each))
    entrants = resolve_gan_entrants(args, limited, split_names(args.entrants))
    if args.dry_run:
        return cli.answer_dry_run(ground, entrants=list(entrants), budget=budget)
    out = cli.out_uri(args) if args.out else None
    result = run_comparison(
        ComparisonPlan(
            base=plan_run(args, ground, "comparison"),
            entrants=entrants,
            seeds=tuple(range(ground.train.seed, ground.train.seed + args.seeds)),
            num_concurrent=args.concurrent or default_concurrency(ground.train.num_workers),
            budget=budget,
            out=out,
        )
    )
    return {**result, "exit_code": 1 if result["missing"] else 0}


if __name__ == "__main__":
    cli.run_job(main)
