#!/usr/bin/env python3
"""Compare networks, losses and optimisers of a recipe: equal budget, same folds and seeds, one ranking.

    python jobs/compare.py --data s3://bucket/brats --recipe unet_small --minutes-each 3 --folds 2 \
        --nets recipe,unetpp:width=16,u2netp,segresnet --losses region_dice_bce,region_focal

A recipe that is a study (keras_study) has entrants of its own. The same --run-name resumes with the missing runs, and
may add entrants. A run that diverges has lost. If a run failed for another reason, the exit code is 1 and the same
command repeats it.
"""

from __future__ import annotations

import dataclasses

import _path  # noqa: F401
from glioray.cli import old as cli
from glioray.config import with_settings
from glioray.engine.comparison import ComparisonPlan
from glioray.engine.entrants import budget_settings, budget_text, split_names
from glioray.engine.on_ray.compare import run_comparison
from glioray.engine.on_ray.connect import default_concurrency
from glioray.resolve import resolve_config
from glioray.sources import plan_run
from glioray.tasks.segmentation.entrants import STUDIES, entrant_config, product_entrants
from glioray.tasks.segmentation.task import check_buildable

FLAGS = "data storage recipe run-name workers concurrent seed experiment set dry-run"
MORE = {
    "nets": {"metavar": "A,B:OPTION=VALUE,…", "help": "networks; 'recipe' is the recipe's own"},
    "losses": {"metavar": "A,B,…", "help": "losses (default: the recipe's)"},
    "optimizers": {"metavar": "A,B:lr=0.01,…", "help": "optimisers (default: the recipe's)"},
    "width": {"metavar": "W", "type": int, "help": "width of every network, to cut a study down"},
    "folds": {
        "metavar": "K",
        "type": int,
        "default": 5,
        "help": "of the cross-validation, without the patients of a manifest's test split (default: %(default)s)",
    },
    "seeds": {
        "metavar": "N",
        "type": int,
        "default": 1,
        "help": "runs a fold, each from another seed (default: 1)",
    },
    "minutes_each": {
        "metavar": "M",
        "type": float,
        "help": "budget of each run, in minutes; validation counts",
    },
    "slices_each": {"metavar": "N", "type": int, "help": "budget of each run, in slices learned from"},
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], FLAGS, **MORE)
    args.max_epochs = args.minutes = args.fold = None
    config = resolve_config(args)
    cli.check_counts(args, "concurrent width seeds slices-each")
    each = {"minutes": args.minutes_each, "num_slices": args.slices_each}
    budget = budget_text(config, **each)
    named = [split_names(text) for text in (args.nets, args.losses, args.optimizers)]
    rows = (
        STUDIES[config.recipe]() if config.recipe in STUDIES and not any(named) else product_entrants(*named)
    )
    entrants = {}
    for row in rows:
        mine = entrant_config(config, row, width=args.width)
        entrants[row.label] = with_settings(mine, budget_settings(mine, **each))
        check_buildable(entrants[row.label])
    if args.dry_run:
        return cli.answer_dry_run(config, entrants=list(entrants), budget=budget)
    plan = plan_run(args, config, "comparison")
    result = run_comparison(
        ComparisonPlan(
            base=dataclasses.replace(plan, manifest=plan.manifest.with_folds(args.folds)),
            entrants=entrants,
            seeds=tuple(range(config.train.seed, config.train.seed + args.seeds)),
            num_concurrent=args.concurrent or default_concurrency(config.train.num_workers),
            budget=budget,
        )
    )
    return {**result, "exit_code": 1 if result["missing"] else 0}


if __name__ == "__main__":
    cli.run_job(main)
