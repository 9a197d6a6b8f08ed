"""`infra/local.sh demo gan`: super-resolution GANs on phantom data, among them some that collapse.

The recipe's space reaches learning rates at which a GAN collapses, and trials are given there: what stops them, and
where they lie, is what this demo shows beside the winner's images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
from demo import OUT, begin, promote, say_where, serve, short, tune
from local import PHANTOM
from processes import ServiceError

RECIPE = "mri_phantom"
# The recipe's own rate of 2e-4 comes first. At the largest one no GAN of this size stays healthy.
RATES = (1e-2, 3e-3, 3e-5)
STOPPED = ("collapsed", "dead")


def run_gan_demo() -> None:
    """All the steps.

    Raises:
        ServiceError: a step failed; the message says which.
    """
    clock, services, env = begin(num_steps=7)
    num_trials = 1 + len(RATES)

    clock.step(f"tune a super-resolution GAN: {num_trials} trials by {RECIPE}, at rates up to {max(RATES):g}")
    points = [part for rate in RATES for part in ("--point", f"optim_g.lr={rate:g}")]
    tuned = tune("tune_gan", ["jobs/tune_gan.py", "--recipe", RECIPE, *points], num_trials, env, clock)
    stopped = [trial for trial in tuned["trials"] if trial["state"] in STOPPED]
    for trial in tuned["trials"]:
        rate = trial["settings"]["optim_g.lr"]
        clock.note(
            f"learning rate {rate:.0e}: {trial['state']}, objective {trial['objective']:.2f}", trial["reason"]
        )
    if not stopped:
        raise ServiceError(
            f"no trial collapsed, expected at least that of the learning rate {max(RATES):g}: see trials.md of run "
            f"{tuned['run_id']} in MLflow, remove {short(OUT)} and try again"
        )
    metrics = tuned["metrics"]
    clock.note(
        f"winner: {metrics['gain_psnr']:+.2f} dB over bicubic, quality {metrics['quality']:.2f}",
        tuned["model"],
    )

    clock.step("fetch the plot of learning rates from MLflow")
    rates = _fetch(services["mlflow"].address, tuned["run_id"], "rates.png")
    clock.note(rates)

    clock.step("promote the winner to `champion`")
    champion = promote("promote_gan", tuned["model"], env, clock)

    clock.step("serve the champion")
    endpoint = serve(env, champion, clock)

    clock.step("super-resolve a slice by HTTP, and draw it beside bicubic and the real one")
    picture = _super_resolve(endpoint, clock)
    say_where(
        services,
        clock,
        tuned["run_id"],
        {
            "page": f"{endpoint}/",
            "endpoint": f"{endpoint}/v1/superresolve",
            "rates": short(rates),
            "slice": short(picture),
        },
    )


def _fetch(mlflow: str, run_id: str, name: str) -> Path:
    """An artifact of a run, as a file."""
    answer = requests.get(f"{mlflow}/get-artifact", params={"run_id": run_id, "path": name}, timeout=60)
    if not answer.ok:
        raise ServiceError(f"MLflow has no {name} of run {run_id}: it answered {answer.status_code}")
    path = OUT / f"gan_{name}"
    path.write_bytes(answer.content)
    return path


def _super_resolve(endpoint: str, clock: Any) -> Path:
    """A PNG of one FLAIR slice: its low resolution, bicubic, as the endpoint answers, and as it was.

    It is of the last case, which is not trained on where the split says so.
    """
    import torch

    from glioray.cases.layouts import discover_cases
    from glioray.cases.load import load_case
    from glioray.config import MODALITIES
    from glioray.metrics.image import psnr
    from glioray.slices.preprocess import preprocess
    from glioray.storage import open_storage
    from glioray.tasks.superres.degrade import degrade, upsample
    from glioray.tasks.superres.png import encode_png, read_png
    from glioray.tasks.superres.recipes import build_gan_recipe

    config = build_gan_recipe(RECIPE)
    storage = open_storage(PHANTOM)
    case = load_case(storage, sorted(discover_cases(storage)[0], key=lambda files: files.case_id)[-1])
    (stack,) = preprocess(case, config.preprocess)
    place = (
        int((stack.mask > 0).sum(axis=(1, 2)).argmax()) if stack.mask is not None else len(stack.images) // 2
    )
    hr = torch.from_numpy(stack.images[place, MODALITIES.index("flair")].astype(np.float32))[None, None]
    height, width = hr.shape[-2:]
    scale = config.degrade.scale
    lr = degrade(hr, (round(height / scale), round(width / scale)), config.degrade)
    bicubic = upsample(lr, (height, width))
    full = 40000  # of 16 bits: interpolation overshoots
    pixels = np.rint(lr[0, 0].numpy().clip(0, 1.5) * full).astype(np.uint16)
    url = f"{endpoint}/v1/superresolve"
    answer = requests.post(url, files={"image": ("slice.png", encode_png(pixels), "image/png")}, timeout=120)
    if not answer.ok:
        raise ServiceError(f"POST {url} answered {answer.status_code}: {answer.text[:300]}")
    made = read_png(answer.content, name="answer", max_pixels=height * width)
    sr = torch.from_numpy(made.astype(np.float32) / full)[None, None]
    mask = (hr > 0)[0]
    found = {
        name: float(psnr(image[0].clamp(0, 1), hr[0], mask))
        for name, image in (("bicubic", bicubic), ("sr", sr))
    }
    clock.note(
        f"{case.case_id}, axial slice {place}: " + json.dumps({k: round(v, 2) for k, v in found.items()}),
        "dB PSNR",
    )
    return _draw(lr, bicubic, sr, hr, found)


def _draw(lr: Any, bicubic: Any, sr: Any, hr: Any, decibels: Mapping[str, float]) -> Path:
    """Four images in a row, and below them the same window of each."""
    from matplotlib.figure import Figure

    titles = {
        f"low resolution, {lr.shape[-2]} x {lr.shape[-1]}": lr,
        f"bicubic, {decibels['bicubic']:.1f} dB": bicubic,
        f"super-resolved by HTTP, {decibels['sr']:.1f} dB": sr,
        f"real, {hr.shape[-2]} x {hr.shape[-1]}": hr,
    }
    figure = Figure(figsize=(14, 7.4), layout="constrained")
    grid = figure.subplots(2, len(titles))
    for column, (title, image) in enumerate(titles.items()):
        # RAS+ indices grow to the front and right; pictures start at the top, with the patient's right first.
        shown = image[0, 0].flip(0, 1).numpy()
        rows, columns = (slice(side * 3 // 10, side * 7 // 10) for side in shown.shape)
        for axes, part in zip(grid[:, column], (shown, shown[rows, columns]), strict=True):
            axes.imshow(part, cmap="gray", vmin=0, vmax=float(hr.max()), interpolation="nearest")
            axes.set_axis_off()
        grid[0, column].set_title(title, fontsize=11)
    path = OUT / "gan_slice.png"
    figure.savefig(path, dpi=90)
    return path
