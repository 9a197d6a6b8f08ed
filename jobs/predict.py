#!/usr/bin/env python3
"""Write a mask for every case of --data, on the case's own grid and in its own label convention.

python jobs/predict.py --model models:/glioray-unet@champion --data s3://bucket/new --out s3://bucket/masks
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("predict", __doc__)

if __name__ == "__main__":
    job.run()
