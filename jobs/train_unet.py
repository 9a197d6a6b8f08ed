#!/usr/bin/env python3
"""Train one U-Net by a recipe on the data of --data: tracked in MLflow, resumable by --run-name.

python jobs/train_unet.py --data s3://bucket/brats --recipe unet_brats --workers 8 --run-name first
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("train", __doc__, task="segmentation", recipe_variable="GLIORAY_RECIPE")

if __name__ == "__main__":
    job.run()
