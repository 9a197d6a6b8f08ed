#!/usr/bin/env python3
"""Search the rates, weights and adversarial loss of a super-resolution GAN; what collapses is stopped and never wins.

ray job submit --working-dir . -- python jobs/tune_gan.py --data s3://bucket/brats --trials 32
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("tune", __doc__, task="superres", recipe_variable="GLIORAY_GAN_RECIPE")

if __name__ == "__main__":
    job.run()
