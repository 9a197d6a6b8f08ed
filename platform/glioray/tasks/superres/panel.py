"""The fixed images that a super-resolution run is scored on, at every evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glioray.errors import DataError
from glioray.slices.preprocess import SliceStack
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.pairs import fixed_images

_log = logging.getLogger(__name__)

_MIN_BRAIN = 0.1
"""Share of an image that brain must fill; the ends of a head look alike, whatever a generator makes of them."""

_THROUGH = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The axis of a case, of X, Y, Z, along which slices of a plane follow one another."""


@dataclass(frozen=True)
class Panel:
    """Images to score a generator on.

    Attributes:
        hr: (N, C, H, W) float32 in [0, 1].
        titles: case, modality and slice number of each.
        patients: of each.
    """

    hr: Tensor
    titles: tuple[str, ...]
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.hr)


@dataclass(frozen=True)
class PanelRow:
    """One slice (and modality) of a panel, as drawn: row 0 on top.

    Attributes:
        title: of the row, such as the case, the slice and the modality.
        lr: (h, w) in [0, 1].
        bicubic: (H, W), upsampled from `lr`.
        sr: (H, W), the generator's output; non-finite pixels are drawn magenta.
        hr: (H, W), the truth.
        figures: metrics to show, any of "psnr", "lpips" and, for bicubic, "bicubic_psnr", "bicubic_lpips".
    """

    title: str
    lr: np.ndarray
    bicubic: np.ndarray
    sr: np.ndarray
    hr: np.ndarray
    figures: Mapping[str, float] = field(default_factory=dict)


def pick_panel(
    stacks: Sequence[tuple[SliceStack, ...]], patients: Mapping[str, str], config: GanConfig
) -> Panel:
    """Pick at most `collapse.num_slices` images; the result depends on the cases and the config alone.

    One case per patient, in its first plane. Slices of a case are at least `collapse.apart_mm` apart, spread over the
    brain, and contain enough of it. Patients take turns up to `collapse.per_patient` each, or more if there are few.
    With channels "each", every modality of a slice is a separate image.

    Args:
        stacks: per case, one stack per plane.
        patients: case id -> patient.
        config: of the run.

    Raises:
        DataError: fewer than `collapse.min_slices` images.
    """
    rules = config.collapse
    first: dict[str, SliceStack] = {}
    for case in sorted(stacks, key=lambda case: case[0].case_id):
        first.setdefault(patients[case[0].case_id], case[0])
    # Shuffled, so that a selection of patients does not come from the first hospital in the list.
    names = [sorted(first)[place] for place in np.random.default_rng(0).permutation(len(first))]
    modalities = config.preprocess.modalities
    each = config.channels == "each"
    num_wanted = math.ceil(rules.num_slices / (len(modalities) if each else 1))
    usable: dict[str, NDArray[np.int64]] = {}
    for name in names:
        usable[name] = _usable(first[name], config)
        if sum(min(len(found), 1) for found in usable.values()) == num_wanted:
            break
    counts = dict.fromkeys(usable, 0)
    for most in range(1, num_wanted + 1):
        for name, found in usable.items():
            if sum(counts.values()) < num_wanted:
                counts[name] = min(most, len(found))
    images: list[Tensor] = []
    titles: list[str] = []
    owners: list[str] = []
    for number, (name, count) in enumerate(counts.items()):
        stack, found = first[name], usable[name]
        # A different start for each patient, so that one slice each does not mean all middle slices.
        phase = (0.5 + number * (math.sqrt(5) - 1) / 2) % 1
        for place in found[((np.arange(count) + phase) * len(found) / max(count, 1)).astype(int)]:
            made = fixed_images(_slice(stack, int(place)), config)
            images.append(made)
            where = f"{stack.plane} {stack.origin[0] + int(place)}"
            shown = modalities if each else ("",)
            titles += [" ".join(filter(None, (stack.case_id, shown_name, where))) for shown_name in shown]
            owners += [name] * len(made)
    num_images = min(len(titles), rules.num_slices)
    if num_images < rules.min_slices:
        raise DataError(
            f"the validation cases of {len(first)} patient(s) give {num_images} images to judge collapse by, at least "
            f"{rules.apart_mm:g} mm apart; expected {rules.min_slices}, so validate on more cases or lower "
            "collapse.apart_mm or collapse.min_slices"
        )
    if max(counts.values()) > rules.per_patient:
        _log.warning(
            "collapse is judged by up to %d slices of a patient, not %d: there are %d patients to validate on",
            max(counts.values()), rules.per_patient, len(first),
        )  # fmt: skip
    return Panel(torch.cat(images)[:num_images], tuple(titles[:num_images]), tuple(owners[:num_images]))


def _usable(stack: SliceStack, config: GanConfig) -> NDArray[np.int64]:
    """Find slices with enough brain, far enough apart."""
    step = max(1, math.ceil(config.collapse.apart_mm / stack.spacing_mm[_THROUGH[stack.plane]] - 1e-6))
    places = range(len(stack.images) % step // 2, len(stack.images), step)
    kept = [
        place
        for place in places
        if float((fixed_images(_slice(stack, place), config).flatten(0, 1) > 0).any(0).float().mean())
        >= _MIN_BRAIN
    ]
    return np.array(kept, np.int64)


def _slice(stack: SliceStack, place: int) -> Tensor:
    """Return one slice as (M, H, W) float32."""
    return torch.from_numpy(np.asarray(stack.images[place], np.float32))
