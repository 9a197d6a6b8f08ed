"""A segmentation model in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from glioray.cancellation import raise_if_cancelled
from glioray.cases.labels import REGION_LABELS
from glioray.cases.load import Case
from glioray.config import REGIONS, PreprocessConfig
from glioray.engine.precision import Agree, autocast, choose_inference_precision, to_device
from glioray.errors import ModelError
from glioray.serialization import to_dict
from glioray.slices.enhance import bounding_box
from glioray.slices.preprocess import SliceStack, preprocess
from glioray.slices.store import SliceStore
from glioray.slices.volumes import MAX_VOXELS, find_unlike_axis, probs_on_grid, resampled_shape
from glioray.tasks.segmentation.package import ModelSpec, read_package
from glioray.tasks.segmentation.postprocess import decode_labels, postprocess


class Predictor:
    """Predicts whole cases; safe to call from one thread at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        net: nn.Module,
        device: str = "cpu",
        batch_size: int = 16,
        precision: str | None = None,
    ) -> None:
        self.spec, self.device, self.batch_size = spec, torch.device(device), batch_size
        self.net = to_device(net, self.device).eval()
        self._precision = precision

    @classmethod
    def load(cls, folder: Path, device: str | None = None, *, agree: Agree | None = None) -> Predictor:
        """Load the model of a package folder; on a GPU by default, if there is one.

        Args:
            folder: of the package.
            device: by torch's name.
            agree: as for `engine.precision.choose_precision`.
        """
        spec, net = read_package(folder)
        predictor = cls(spec, net, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if agree is not None:
            predictor._precision = predictor.choose_precision(agree=agree)
        return predictor

    def predict(self, case: Case, *, resample: bool = False) -> NDArray[np.uint8]:
        """Predict the mask of a case: (X, Y, Z) internal labels, RAS+, in the case's own voxels.

        Args:
            case: of `load_case`.
            resample: resample a case whose voxel size is far from that of training; its probabilities are brought
                back linearly onto its own grid, where the labels are decided.

        Raises:
            ModelError: the case's voxel size is far from that of training.
            CaseError: the case contains no brain, or too many voxels once it is resampled.
        """
        return self.decode(self.probs(case, resample=resample), case.voxel_ml)

    def probs(self, case: Case, *, resample: bool = False) -> NDArray[np.float32]:
        """Predict (C, X, Y, Z) probabilities in [0, 1] on the case's own grid, RAS+; 0 away from the brain.

        C are the regions WT, TC, ET or the classes; averaged over planes, mirrored copies and ensemble members.

        Args, Raises: as `predict`.
        """
        config = self.choose_preprocessing(case, resample=resample)
        x, y, z = case.images.shape[1:]
        return probs_on_grid(self.probs_of_stacks(preprocess(case, config, whole=True)), (x, y, z))

    def predict_stacks(self, stacks: Sequence[SliceStack]) -> NDArray[np.uint8]:
        """Predict the (X, Y, Z) labels of a case's preprocessed slices, on the grid they were cut from."""
        return self.decode(self.probs_of_stacks(stacks), stacks[0].voxel_ml)

    def probs_of_stacks(self, stacks: Sequence[SliceStack]) -> NDArray[np.float32]:
        """Predict (C, X, Y, Z) probabilities of a case's preprocessed slices, on the grid they were cut from."""
        probs = np.zeros((self.spec.out_channels, *stacks[0].shape), np.float32)
        for stack in stacks:
            probs += stack.restore(self._probs(stack))
        probs /= len(stacks)
        return probs

    def decode(self, probs: NDArray[np.float32], voxel_ml: float) -> NDArray[np.uint8]:
        """Turn (C, X, Y, Z) probabilities into (X, Y, Z) labels by the model's rules, in 3-D."""
        config = self.spec.config
        labels = decode_labels(probs, config.loss.target, config.postprocess.thresholds)
        return postprocess(labels, config.postprocess, voxel_ml)

    def region_probs(self, probs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(X, Y, Z) probabilities of each region that the model labels, out of the (C, X, Y, Z) of its outputs."""
        if self.spec.config.loss.target == "regions":
            by_region = dict(zip(REGIONS, probs, strict=True))
        else:
            by_region = {name: probs[list(labels)].sum(axis=0) for name, labels in REGION_LABELS.items()}
        return {name: by_region[name] for name in REGIONS if name in self.spec.regions}

    @property
    def precision(self) -> str:
        """The arithmetic of the network, "bf16" or "fp32"; where it was not given, it is chosen once."""
        if self._precision is None:
            self._precision = self.choose_precision()
        return self._precision

    def choose_precision(self, *, shared: bool = False, agree: Agree | None = None) -> str:
        """The precision that predicts batches of the model's own size faster; see `engine.precision`."""
        config = self.spec.config
        return choose_inference_precision(
            config.train.precision,
            self.device,
            self.net,
            (self.batch_size, config.preprocess.num_channels, *config.preprocess.size),
            work="prediction",
            identity=[to_dict(config.net), self.spec.out_channels, self.spec.num_members],
            shared=shared,
            agree=agree,
        )

    def choose_preprocessing(
        self, case: Case, *, resample: bool = False, max_voxels: int = MAX_VOXELS
    ) -> PreprocessConfig:
        """The steps from a case to its slices: those of training, after resampling where that is needed and allowed.

        Args:
            case: the case.
            resample: resample voxels of a size that the model was not trained on.
            max_voxels: of the resampled case.

        Raises:
            ModelError: voxels of such a size without `resample`; names the axis and both sizes.
            CaseError: more than `max_voxels`.
        """
        config = self.spec.config.preprocess
        axis = self._unlike_axis(case)
        if axis is None:
            return config
        if not resample:
            raise ModelError(
                f"case {case.case_id} has voxels of {case.spacing_mm[axis]:.2f} mm along {'XYZ'[axis]} but the model "
                f"was trained on {self.spec.spacing_mm[axis]:.2f} mm; send resample=true (--resample in a job) to "
                "resample the case and bring its mask back, or train on such voxels"
            )
        resampled_shape(case, self.spec.spacing_mm, max_voxels=max_voxels)
        return config.replace(spacing_mm=self.spec.spacing_mm)

    def describe_resampling(self, case: Case) -> str | None:
        """A sentence on what `resample` does to a case; None where it does nothing."""
        if self._unlike_axis(case) is None:
            return None
        own, trained = (
            " x ".join(f"{mm:.2f}" for mm in edges) for edges in (case.spacing_mm, self.spec.spacing_mm)
        )
        return (
            f"the case was resampled from voxels of {own} mm to the {trained} mm that the model learned from, and the "
            "result brought back, so its borders are less exact"
        )

    def _unlike_axis(self, case: Case) -> int | None:
        """The first axis along which voxels have a size that the model neither was trained on nor resamples itself."""
        if self.spec.config.preprocess.spacing_mm is not None:
            return None
        return find_unlike_axis(case.spacing_mm, self.spec.spacing_mm)

    def _probs(self, stack: SliceStack) -> NDArray[np.float32]:
        """Predict (C, S, H, W) probabilities of one plane, averaged over the model's mirrored copies."""
        config = self.spec.config
        rows, columns = config.postprocess.mirror
        columns = columns and stack.plane != "sagittal"  # its columns run from bottom to top
        flips = [(*r, *c) for r in ([(), (2,)] if rows else [()]) for c in ([(), (3,)] if columns else [()])]
        parts = []
        with torch.inference_mode(), autocast(self.device, self.precision):
            for batch in SliceStore([stack], config.preprocess).stack_batches(0, self.batch_size):
                raise_if_cancelled()
                images = batch.to(self.device).images.contiguous(memory_format=torch.channels_last)
                total = sum(
                    _activate(self.net(images.flip(f)).float(), config.loss.target).flip(f) for f in flips
                )
                parts.append(torch.as_tensor(total / len(flips)).cpu())
        return torch.cat(parts).movedim(1, 0).numpy()


def uncertainty(
    probs: NDArray[np.float32], target: str, regions: Sequence[str] = REGIONS
) -> NDArray[np.float32]:
    """Compute (X, Y, Z) float32 uncertainty in [0, 1] from (C, X, Y, Z) probabilities: normalised entropy.

    For "classes", the entropy over classes divided by log C. For "regions", the mean of the regions' binary entropies
    divided by log 2: each region is a separate question about a voxel. With several planes, mirrored copies or members
    it is the entropy of their mean, so it is high where they disagree. It cannot show errors that all of them share.

    Args:
        probs: as `Predictor.probs` gives them.
        target: "classes" or "regions".
        regions: those of WT, TC and ET that the model was trained on; with WT alone, all tumour is one class.

    Reference: predictive entropy as in Lakshminarayanan et al. 2017 (arXiv 1612.01474) for ensembles and Wang et
    al. 2019 (arXiv 1807.07356) for mirrored copies; QU-BraTS (Mehta et al. 2022, arXiv 2112.10074) judges such
    maps by region and from 0 to 100, ours is one map for all.
    """
    # Away from the brain the entropy is 0.
    result = np.zeros(probs.shape[1:], np.float32)
    if (box := bounding_box(np.any(probs, axis=0))) is not None:
        result[box] = _normalised_entropy(probs[:, *box], target, regions)
    return result


def _normalised_entropy(
    probs: NDArray[np.float32], target: str, regions: Sequence[str]
) -> NDArray[np.float32]:
    if target == "regions":
        known = [probs[REGIONS.index(name)] for name in regions]
        total = sum(_entropy(region) + _entropy(1 - region) for region in known)
        return np.asarray(total / (len(known) * math.log(2)), np.float32).clip(0, 1)
    tumour = probs[1:] if set(REGIONS) <= set(regions) else probs[1:].sum(0, keepdims=True)
    # Outside its window, a plane votes for background.
    total = sum(map(_entropy, tumour), _entropy(1 - tumour.sum(0)))
    return np.asarray(total / math.log(len(tumour) + 1), np.float32).clip(0, 1)


def _entropy(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute -p log p, with 0 at 0; rounding may have moved p outside [0, 1]."""
    entropy: NDArray[np.float32] = special.entr(probs.clip(0, 1))
    return entropy


def _activate(logits: Tensor, target: str) -> Tensor:
    return logits.softmax(1) if target == "classes" else logits.sigmoid()
