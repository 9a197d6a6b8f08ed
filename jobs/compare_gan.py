#!/usr/bin/env python3
"""Compare super-resolution GANs on the same data: SRGAN against ESRGAN at an equal budget, over seeds.

    python jobs/compare_gan.py --data s3://bucket/brats --recipe mri_small --minutes-each 10 --seeds 3 \
        --entrants srgan_small,esrgan_small,esrgan_small:optim_g.lr=0.001

--recipe is what all entrants share (slices, degradation, batches, judge); an entrant has its own networks, losses and
optimisers. The same --run-name resumes with the missing runs, and may add entrants. A run that collapses or diverges
has lost. If a run failed for another reason, the exit code is 1 and the same command repeats it.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("compare", __doc__, task="superres", without=["folds"], recipe_variable="GLIORAY_GAN_RECIPE")

if __name__ == "__main__":
    job.run()
