#!/usr/bin/env python3
"""Make a model the champion, if it beats the present one on the same validation cases.

    python jobs/promote.py --model models:/glioray-unet/3 --data s3://bucket/brats
    python jobs/promote.py --model models:/glioray-superres/2 --data s3://bucket/brats

With --data both are judged now on cases that neither was trained on; without, by what was recorded at training (volumes
of the regions, or the quality of super-resolved images), which both must have on the same cases. A super-resolution
model that has collapsed or died, or that was never judged for it, is refused.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("promote", __doc__)

if __name__ == "__main__":
    job.run()
