#!/usr/bin/env python3
"""Evaluate a model on cases: overlap, surfaces, volumes and lesions by case and region, with intervals.

    python jobs/evaluate.py --model models:/glioray-unet@champion --data s3://bucket/brats --out results
    python jobs/evaluate.py --model models:/glioray-superres@champion --data s3://bucket/brats --out results

By default on the cases of patients that the model was not trained on. Means are over cases, with 95 % intervals by
resampling patients; `slicewise` is the slice-level table of the same predictions, which inflates scores. A
super-resolution model is evaluated by its images and, on labelled cases, by what a frozen segmenter makes of them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.engine.on_ray.connect import connect, log_to_stderr
from glioray.sources import named_model, open_data
from glioray.tasks import open_package, open_segmenter

SPLIT = {
    "metavar": "SPLIT",
    "default": "unseen",
    "help": "unseen (cases of patients it was not trained on), train, val, test or labelled (default: unseen)",
}
SEGMENTER = {
    "metavar": "URI",
    "help": "segmentation model that labels the images of a super-resolution model, or none (default: the champion of "
    "glioray-unet, where there is one)",
}


def main() -> dict[str, object]:
    flags = "model data out storage dry-run"
    args = cli.parse_flags(__doc__.splitlines()[0], flags, split=SPLIT, segmenter=SEGMENTER)
    data, storage = cli.data_uri(args), cli.storage_uri(args)
    cli.tracking_address(storage)
    with tempfile.TemporaryDirectory() as folder:
        resolved = named_model(args)
        package = open_package(resolved, Path(folder) / "model")
        if args.dry_run:
            return cli.answer_dry_run(package.spec.config, model=resolved)
        log_to_stderr()
        segmenter = open_segmenter(package, args.segmenter, Path(folder) / "segmenter")
        out = cli.out_uri(args) if args.out else None
        connect()
        manifest = open_data(data, storage)
        return package.task.evaluate(package, manifest, split=args.split, segmenter=segmenter, out=out)


if __name__ == "__main__":
    cli.run_job(main)
