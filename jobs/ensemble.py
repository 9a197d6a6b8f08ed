#!/usr/bin/env python3
"""Join several models to one that answers with the mean of their probabilities, and register it.

    python jobs/ensemble.py --model s3://bucket/runs/fold0 --model s3://bucket/runs/fold1 --name glioray-unet
    python jobs/ensemble.py --model s3://bucket/runs/first --checkpoints --name glioray-unet

The members are alike but for their weights: the folds of a cross-validation, a run from several seeds, or, with
--checkpoints, what a run kept on its way (train.num_kept above 1).
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("ensemble", __doc__)

if __name__ == "__main__":
    job.run()
