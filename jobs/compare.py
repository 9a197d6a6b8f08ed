#!/usr/bin/env python3
"""Compare networks, losses and optimisers of a recipe: equal budget, same folds and seeds, one ranking.

    python jobs/compare.py --data s3://bucket/brats --recipe unet_small --minutes-each 3 --folds 2 \
        --nets recipe,unetpp:width=16,u2netp,segresnet --losses region_dice_bce,region_focal

A recipe that is a study (keras_study) has entrants of its own. The same --run-name resumes with the missing runs, and
may add entrants. A run that diverges has lost. If a run failed for another reason, the exit code is 1 and the same
command repeats it.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("compare", __doc__, task="segmentation", without=["fold"], recipe_variable="GLIORAY_RECIPE")

if __name__ == "__main__":
    job.run()
