#!/usr/bin/env python3
"""Evaluate a model on cases: overlap, surfaces, volumes and lesions by case and region, with intervals.

    python jobs/evaluate.py --model models:/glioray-unet@champion --data s3://bucket/brats --out results
    python jobs/evaluate.py --model models:/glioray-superres@champion --data s3://bucket/brats --out results

By default on the cases of patients that the model was not trained on. Means are over cases, with 95 % intervals by
resampling patients; `slicewise` is the slice-level table of the same predictions, which inflates scores. A
super-resolution model is evaluated by its images and, on labelled cases, by what a frozen segmenter makes of them.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("evaluate", __doc__)

if __name__ == "__main__":
    job.run()
