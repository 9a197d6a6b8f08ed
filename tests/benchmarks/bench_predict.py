#!/usr/bin/env python3
"""A real case from its four files to the bytes of a mask, by a loaded model and by MONAI's chain with SliceInferer.

    python tests/benchmarks/bench_predict.py                  # all threads
    python tests/benchmarks/bench_predict.py --threads 1 --rounds 5

Both have the network of `--model`. MONAI reads, orients and normalises the files as its users do, predicts every whole axial
slice in fp32, and writes the mask as NIfTI. Ours crops to the brain, predicts every plane and mirrored copy that the
model asks for, and takes the precision that is measured to be faster, or fp32. A model of one plane is timed too: the same
without the other planes and copies. The Dice of the masks is reported, as they are not the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from bench_serve import CASE
from measure import brats_folder, refuse, tell
from monai.inferers import SliceInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, Orientationd

from glioray.cases.labels import from_internal
from glioray.cases.load import load_case_from_bytes
from glioray.cases.nifti import encode_mask, read_volume, to_canonical
from glioray.config import with_settings
from glioray.tasks import open_package
from glioray.tasks.segmentation.files import choose_convention
from glioray.tasks.segmentation.predictor import Predictor

_SUFFIXES = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
_MULTIPLE = 32
"""Of pixels, that every network takes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="one of a single plane, of regions")
    parser.add_argument("--case", default=CASE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=16, help="slices at once, of MONAI's")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = brats_folder() / args.case
    paths = {name: folder / f"{args.case}_{suffix}.nii.gz" for name, suffix in _SUFFIXES.items()}
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(args.model, Path(scratch)).folder
        ours = Predictor.load(package, "cpu")
        config = ours.spec.config
        if config.loss.target != "regions":
            refuse(f"--model predicts {config.loss.target}; this compares models of regions")
        one_plane = with_settings(
            config, {"preprocess.planes": ["axial"], "postprocess.mirror": [False, False]}
        )
        single = dataclasses.replace(ours.spec, config=one_plane)
        num_passes = len(config.preprocess.planes) * 2 ** sum(config.postprocess.mirror)
        models = {
            f"glioray, {num_passes} passes": ours,
            "glioray, one plane": Predictor(single, ours.net, "cpu"),
            "glioray, one plane, fp32": Predictor(single, ours.net, "cpu", precision="fp32"),
        }
        chains: dict[str, Callable[[], bytes]] = {
            **{name: partial(by_ours, model, paths) for name, model in models.items()},
            "MONAI SliceInferer": lambda: by_monai(ours, paths, args.batch, Path(scratch)),
        }
        masks = {name: chain() for name, chain in chains.items()}  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in chains}
        for _ in range(args.rounds):
            for name, chain in chains.items():
                begun = time.perf_counter()
                chain()
                seconds[name].append(time.perf_counter() - begun)
    volumes = {name: read_volume(mask, name=name) for name, mask in masks.items()}
    labels = {name: to_canonical(volume.array, volume.affine)[0] for name, volume in volumes.items()}
    whole, rival = next(iter(chains)), "MONAI SliceInferer"
    tell(
        seconds,
        whole,
        "s a case",
        more_is_better=False,
        target=8,
        helped=[name for name in chains if name not in (whole, rival)],
        threads=args.threads,
        precision=ours.precision,
        dice_wt_to_monai={
            name: round(_dice(mask > 0, labels[rival] > 0), 4) for name, mask in labels.items()
        },
    )


def by_ours(model: Predictor, paths: dict[str, Path]) -> bytes:
    """The mask of a case by glioray."""
    case = load_case_from_bytes({name: path.read_bytes() for name, path in paths.items()})
    mask = from_internal(model.predict(case), choose_convention(None, model.spec))
    return encode_mask(mask, like=case.reference)


def by_monai(model: Predictor, paths: dict[str, Path], batch: int, scratch: Path) -> bytes:
    """The mask of a case by MONAI, with the same weights."""
    chain = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ]
    )
    image = chain({"image": [str(path) for path in paths.values()]})["image"]
    # Slices of X, Y, and of Y, X for the network; one window holds a whole slice.
    turned = image.as_tensor().transpose(1, 2)[None]
    window = [-(-size // _MULTIPLE) * _MULTIPLE for size in turned.shape[2:4]]
    inferer = SliceInferer(roi_size=window, sw_batch_size=batch, spatial_dim=2)
    with torch.inference_mode():
        probs = torch.sigmoid(inferer(turned, model.net))[0].transpose(1, 2).numpy()
    whole, core, enhancing = probs > 0.5
    mask = np.zeros(whole.shape, np.uint8)
    mask[whole] = 2
    mask[core] = 1
    mask[enhancing] = 4
    path = scratch / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask, image.affine.numpy()), path)
    return path.read_bytes()


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


if __name__ == "__main__":
    main()
