#!/usr/bin/env python3
"""Judge a model on cases: overlap, surfaces, volumes and lesions by case and region, with intervals.

    python jobs/evaluate.py --model models:/glioray-unet@champion --data s3://bucket/brats --out results
    python jobs/evaluate.py --model models:/glioray-superres@champion --data s3://bucket/brats --out results

By default on the cases of patients that the model was not trained on. Means are over cases, with 95 % intervals by
resampling patients; `slicewise` is the slice-level table of the same predictions, which flatters. A super-resolution
model is judged by its images and, on labelled cases, by what a frozen segmenter makes of them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.engine.on_ray.connect import connect, log_to_stderr
from glioray.errors import UsageError
from glioray.sources import named_model, open_data
from glioray.tasks import open_package
from glioray.tasks.segmentation.evaluation import evaluate_segmentation
from glioray.tasks.superres.evaluation import evaluate_superres, judging_segmenter

SPLIT = {
    "metavar": "SPLIT",
    "default": "unseen",
    "help": "unseen (cases of patients it was not trained on), train, val, test or labelled (default: unseen)",
}
SEGMENTER = {
    "metavar": "URI",
    "help": "segmentation model that judges a super-resolution model by use, or none (default: the champion of "
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
        if args.segmenter and package.task.output != "images":
            raise UsageError(f"--segmenter judges super-resolution models; {resolved} is one of segmentation")
        log_to_stderr()
        out = cli.out_uri(args) if args.out else None
        segmenter = None
        if package.task.output == "images":
            segmenter = judging_segmenter(args.segmenter, package.spec, Path(folder) / "segmenter")
        connect()
        manifest = open_data(data, storage)
        if package.task.output == "images":
            return evaluate_superres(
                package.folder, package.spec, resolved, segmenter, manifest, args.split, out
            )
        return evaluate_segmentation(package.folder, package.spec, resolved, manifest, args.split, out)


if __name__ == "__main__":
    cli.run_job(main)
