#!/usr/bin/env python3
"""Check the bounds of the collapse score on one's own data: planted collapses are found, healthy outputs are not.

    python jobs/calibrate.py --data s3://bucket/brats --recipe mri --out s3://bucket/calibration

On the panel that a training would be judged on. With --model the generators of a trained model, on its own
settings, are further healthy outputs. Exit code 1 says that an output scores on the wrong side of its bound, and
stderr which bound that is.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("calibrate", __doc__)

if __name__ == "__main__":
    job.run()
