#!/usr/bin/env python3
"""Train one super-resolution GAN by a recipe, watched for collapse: tracked in MLflow, resumable by --run-name.

python jobs/train_gan.py --data s3://bucket/brats --recipe mri --workers 8 --run-name first
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("train", __doc__, task="superres", recipe_variable="GLIORAY_GAN_RECIPE")

if __name__ == "__main__":
    job.run()
