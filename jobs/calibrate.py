#!/usr/bin/env python3
"""Check the bounds of the collapse score on one's own data: planted collapses are found, healthy outputs are not.

    python jobs/calibrate.py --data s3://bucket/brats --recipe mri --out s3://bucket/calibration

On the panel that a training would be judged on. With --model the generators of a trained model, on its own
settings, are further healthy outputs. Exit code 1 says that an output scores on the wrong side of its bound, and
stderr which bound that is.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from glioray import cli
from glioray.config import with_settings
from glioray.engine.on_ray.connect import connect, log_to_stderr
from glioray.engine.on_ray.data import stream_cases
from glioray.errors import ModelError, UsageError
from glioray.resolve import parse_settings
from glioray.slices.cache import CacheConfig
from glioray.sources import check_modalities, open_data
from glioray.storage import join_uri, open_storage
from glioray.tasks import open_package
from glioray.tasks.superres.calibration import calibrate_panel
from glioray.tasks.superres.collapse_figures import calibration_markdown, planted_figure
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.panel import pick_panel
from glioray.tasks.superres.planted import advise
from glioray.tasks.superres.recipes import GAN_RECIPES, build_gan_recipe
from glioray.tasks.superres.training import panel_cases

PAGE, PICTURE = "calibration.md", "planted_collapses.png"
MORE = {
    "recipe": {"metavar": "NAME", "help": f"one of {', '.join(GAN_RECIPES)} (default: mri)"},
    "split": {
        "metavar": "SPLIT",
        "default": "val",
        "help": "whose cases: val, train, test, labelled or all (default: val)",
    },
}


def main() -> dict[str, object]:
    args = cli.parse_flags(__doc__.splitlines()[0], "data model out storage seed set dry-run", **MORE)
    if args.model and args.recipe:
        raise UsageError("--model brings its own recipe; leave out --recipe")
    data, storage = cli.data_uri(args), cli.storage_uri(args)
    settings = parse_settings(args.set, "--set")
    resolver = None
    if args.model:
        cli.tracking_address(storage)
        with tempfile.TemporaryDirectory() as folder:
            package = open_package(args.model, Path(folder))
            if package.task.name != "superres":
                raise ModelError(f"the model {args.model} is no super-resolution model; name one of those")
            resolver = SuperResolver.load(package.folder)
    base = build_gan_recipe(args.recipe or "mri") if resolver is None else resolver.spec.config
    config = with_settings(base, settings)
    if args.dry_run:
        return cli.answer_dry_run(config)
    out = open_storage(cli.out_uri(args))
    log_to_stderr()
    connect()
    manifest = open_data(data, storage, seed=args.seed or 0)
    check_modalities(manifest, config)
    entries = panel_cases(manifest.select(args.split))
    stacks = list(stream_cases(manifest.data, entries, config.preprocess, CacheConfig.from_environment()))
    panel = pick_panel(stacks, {entry.case_id: entry.patient_id for entry in entries}, config)
    rows, images = calibrate_panel(panel, config, resolver)
    title = f"{len(panel)} images of {len(set(panel.patients))} patients in {data}"
    page = calibration_markdown(rows, config.collapse, title=title, picture=PICTURE)
    picture = io.BytesIO()
    figure = planted_figure(rows, images.hr, images.lr, images.outputs)
    figure.savefig(picture, format="png", dpi=90)
    out.write(PAGE, page.encode())
    out.write(PICTURE, picture.getvalue())
    wrong = [row for row in rows if not row.is_ok]
    for row in wrong:
        print(advise(row, config.collapse), file=sys.stderr)
    return {
        "num_images": len(panel),
        "rows": [dataclasses.asdict(row) for row in rows],
        "wrong": [row.name for row in wrong],
        "files": [join_uri(out.uri, name) for name in (PAGE, PICTURE)],
        "exit_code": 1 if wrong else 0,
    }


if __name__ == "__main__":
    cli.run_job(main)
