#!/usr/bin/env python3
"""Check every case of --data and write a manifest: checksums, patient-level splits, label statistics.

    python jobs/prepare.py --data s3://bucket/brats --out s3://bucket/brats-manifest

With --report it leaves a page about the data set too, report.html beside the manifest, and its pictures in MLflow;
--recipe NAME or --set preprocess.clahe=0.02 add what that preparation does to one case.

Good cases go on; bad ones are listed, a line each. Exit code 1 says that there were bad ones (the manifest is
written all the same), 2 that nothing could be done.
"""

import _path  # noqa: F401
from glioray.cli import Job

job = Job("prepare", __doc__)

if __name__ == "__main__":
    job.run()
