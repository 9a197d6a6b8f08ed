#!/usr/bin/env python3
"""Write a model's package and its card to a folder, a bucket or a zip file, from which others load it.

    python jobs/share.py --model models:/glioray-unet@champion --out shared/unet.zip --about about.md \\
        --licence cc-by-4.0 --evaluation results/evaluation.md
    python jobs/predict.py --model https://example.org/unet.zip#sha256=HEX --data /data/new --out /data/masks

The JSON answer has the SHA-256 to give to others, who append it to the address.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("share", __doc__)

if __name__ == "__main__":
    job.run()
