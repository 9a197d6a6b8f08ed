#!/usr/bin/env python3
"""Search the settings of a segmentation recipe and register the best model.

ray job submit --working-dir . -- python jobs/tune_unet.py --data s3://bucket/brats --trials 32
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("tune", __doc__, task="segmentation", recipe_variable="GLIORAY_RECIPE")

if __name__ == "__main__":
    job.run()
