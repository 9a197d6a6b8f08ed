"""A model that super-resolves slices."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glioray.cancellation import raise_if_cancelled
from glioray.cases.load import Case, brain_mask
from glioray.cases.nifti import make_header
from glioray.config import PreprocessConfig
from glioray.engine.precision import Agree, autocast, choose_inference_precision, to_device
from glioray.errors import CaseError, ModelError
from glioray.serialization import to_dict
from glioray.slices.preprocess import PLANE_AXES, SliceStack, unit_range
from glioray.slices.volumes import MAX_VOXELS, find_unlike_axis, prepare_volume, resample, resample_labels
from glioray.tasks.superres.degrade import degrade, upsample
from glioray.tasks.superres.package import SuperResSpec, read_superres

Size = tuple[int, int]

_BATCH_PX = 2**20
"""Pixels that are made at once, at most, unless one image has more: each has dozens of features while it is made."""


@dataclass(frozen=True, kw_only=True)
class StackPair:
    """A stack's slices, degraded as the model was trained, and upsampled again.

    Attributes:
        lr: (S, M, h, w) float32.
        bicubic: (S, M, H, W) float32, interpolated; not clipped.
        sr: (S, M, H, W) float32, the generator's output; not clipped.
    """

    lr: Tensor
    bicubic: Tensor
    sr: Tensor


class SuperResolver:
    """Super-resolves images; safe to call from one thread at a time."""

    def __init__(
        self,
        spec: SuperResSpec,
        nets: Mapping[str, nn.Module],
        device: str = "cpu",
        batch_size: int = 16,
        precision: str | None = None,
    ) -> None:
        self.spec, self.device, self.batch_size = spec, torch.device(device), batch_size
        self.nets = {stage: to_device(net, self.device).eval() for stage, net in nets.items()}
        self._mixed: tuple[float, nn.Module] | None = None
        self._precision = precision

    @classmethod
    def load(cls, folder: Path, device: str | None = None, *, agree: Agree | None = None) -> SuperResolver:
        """Load the model of a package folder; on a GPU by default, if there is one.

        Args:
            folder: of the package.
            device: by torch's name.
            agree: as for `engine.precision.choose_precision`.
        """
        spec, nets = read_superres(folder)
        resolver = cls(spec, nets, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if agree is not None:
            resolver._precision = resolver.choose_precision(agree=agree)
        return resolver

    def generator(self, blend: float | None = None) -> nn.Module:
        """Interpolate the weights of the PSNR (0) and the GAN (1) generator: `(1 - blend) * PSNR + blend * GAN`.

        Without `blend`, return the generator that training ended with.

        Raises:
            ModelError: a blend outside [0, 1], or one that needs a generator the model does not contain.

        Reference: network interpolation of Wang et al. 2018 (ESRGAN, arXiv 1809.00219).
        """
        if blend is None:
            return self.nets["gan" if "gan" in self.nets else "psnr"]
        if not 0 <= blend <= 1:
            raise ModelError(f"blend is {blend:g}; give 0 (the PSNR generator) to 1 (the GAN generator)")
        needed = {stage for stage, share in (("psnr", 1 - blend), ("gan", blend)) if share > 0}
        lacking = sorted(needed - set(self.nets))
        if lacking:
            raise ModelError(
                f"the model has no {lacking[0]} generator, only {', '.join(self.nets)}; blend {blend:g} needs it, so "
                f"leave blend out"
            )
        if len(needed) == 1:
            return self.nets[needed.pop()]
        if self._mixed is None or self._mixed[0] != blend:
            net = to_device(self.spec.build(), self.device).eval()
            psnr, gan = (self.nets[stage].state_dict() for stage in ("psnr", "gan"))
            net.load_state_dict(
                {
                    name: torch.lerp(tensor, gan[name], blend) if tensor.is_floating_point() else gan[name]
                    for name, tensor in psnr.items()
                }
            )
            self._mixed = (blend, net)
        return self._mixed[1]

    @property
    def precision(self) -> str:
        """The arithmetic of the generator, "bf16" or "fp32"; where it was not given, it is chosen once."""
        if self._precision is None:
            self._precision = self.choose_precision()
        return self._precision

    def choose_precision(self, *, shared: bool = False, agree: Agree | None = None) -> str:
        """The precision that super-resolves images of the training's size faster; see `engine.precision`."""
        config = self.spec.config
        size, lr_size = config.degrade.hr_size, config.degrade.lr_size
        net = self.generator()
        return choose_inference_precision(
            config.train.precision,
            self.device,
            lambda lr: net(lr, (size, size)),
            (self.batch_size, config.num_channels, lr_size, lr_size),
            work="super-resolution",
            identity=[to_dict(config.generator), size],
            shared=shared,
            agree=agree,
        )

    def images(self, lr: Tensor, size: Size | None = None, blend: float | None = None) -> Tensor:
        """Super-resolve images (N, C, h, w) in [0, 1] to (N, C, H, W) float32 on the CPU; not clipped.

        A one-channel model treats each of the C channels as a separate image.

        Args:
            lr: the images.
            size: (H, W) of the result; by default the model's scale times (h, w).
            blend: as for `generator`.

        Raises:
            ModelError: as for `generator`, or C does not fit the model.
        """
        wanted = self.spec.config.num_channels
        num, channels, height, width = lr.shape
        if wanted not in (1, channels):
            raise ModelError(
                f"the images have {channels} channel(s) but the model takes {wanted} together "
                f"({', '.join(self.spec.config.preprocess.modalities)}); send all of them"
            )
        scale = self.spec.config.degrade.scale
        size = size or (round(height * scale), round(width * scale))
        net = self.generator(blend)
        rows = lr.reshape(-1, wanted, height, width)
        parts = []
        with torch.inference_mode(), autocast(self.device, self.precision):
            for part in rows.split(max(1, min(self.batch_size, _BATCH_PX // math.prod(size)))):
                raise_if_cancelled()
                part = part.float().to(self.device).contiguous(memory_format=torch.channels_last)
                parts.append(net(part, size).float().cpu())
        return torch.cat(parts).reshape(num, channels, *size)

    def stack(self, stack: SliceStack, blend: float | None = None) -> StackPair:
        """Degrade high-resolution slices in their plane as in training, and super-resolve them.

        The noise of the degradation, if it has any, is the same each time.

        Args:
            stack: in [0, 1], preprocessed with the model's `preprocess`.
            blend: as for `generator`.

        Raises:
            ModelError: as for `images`.
        """
        hr = torch.from_numpy(stack.images.astype(np.float32))
        height, width = hr.shape[-2:]
        config = self.spec.config.degrade
        name = zlib.crc32(f"{stack.case_id}/{stack.plane}".encode())
        rngs = [np.random.default_rng([name, number]) for number in range(len(hr))] if config.noise else None
        lr = degrade(hr, (round(height / config.scale), round(width / config.scale)), config, rngs)
        return StackPair(
            lr=lr, bicubic=upsample(lr, (height, width)), sr=self.images(lr, (height, width), blend)
        )

    def predict(self, case: Case) -> Case:
        """`super_resolve` with the model's own scale and last generator."""
        return self.super_resolve(case)

    def super_resolve(
        self, case: Case, *, plane: str | None = None, blend: float | None = None, size: Size | None = None
    ) -> Case:
        """The case on a finer grid in one plane: its images super-resolved as acquired, not degraded first.

        Both grids fill the same box. Intensities are the case's own, rounded where it holds integers; what is above
        the 99.9th percentile of its brain is cut off there, as in training. What is no brain is 0.

        That percentile is the case's own: of low resolution it lies below that of the high resolution which training
        scaled by (on real cases, x4: T2 and FLAIR by some 5 %, T1 by 15 %, T1c with its bright vessels by up to 35 %), so
        that the generator sees the case as much brighter. One trained by pixel losses lost at most 0.1 dB by it.

        Args:
            case: low resolution as acquired. A model of one channel takes any modalities, another one its own.
            plane: of the slices that are super-resolved; by default `plane_of`.
            blend: as for `generator`.
            size: (H, W) of the new slices; by default the model's scale times the old ones'.

        Raises:
            CaseError: no brain, no contrast, or too many voxels.
            ModelError: as for `images`, or the model's preprocessing cannot be undone.
        """
        plane = plane or plane_of(case)
        config = self._preparation(case)
        case = prepare_volume(replace(case, full_volume=None), config)
        brain = brain_mask(case.images)
        order = PLANE_AXES[plane]
        back = np.argsort(order)
        rows, columns = (brain.shape[axis] for axis in order[1:])
        scale = self.spec.config.degrade.scale
        height, width = size or (round(rows * scale), round(columns * scale))
        x, y, z = (int(n) for n in np.array((brain.shape[order[0]], height, width))[back])
        shape = (x, y, z)
        if math.prod(shape) > MAX_VOXELS:
            raise CaseError(
                case.case_id,
                "",
                f"would become {shape} voxels; expected at most {MAX_VOXELS} in all",
                "crop it",
            )
        units, ranges = zip(*(_to_unit(image, brain, config, case) for image in case.images), strict=True)
        with_brain: NDArray[np.bool_] = np.asarray(np.transpose(brain, order).any(axis=(1, 2)))
        lr = np.stack([np.transpose(unit, order)[with_brain] for unit in units], 1)
        sr = self.images(torch.from_numpy(lr), (height, width), blend).clamp(0, 1).numpy()
        inside = resample(brain, shape) >= 0.5
        # The memory order of `load_case`: x varies fastest.
        images = np.zeros((len(units), z, y, x), case.images.dtype).transpose(0, 3, 2, 1)
        volume = np.zeros((len(with_brain), height, width), np.float32)
        for number, (low, high) in enumerate(ranges):
            volume[with_brain] = sr[:, number] * (high - low) + low
            values = np.transpose(volume, back)
            if images.dtype.kind == "i":
                values = np.rint(values)
            images[number] = np.where(inside, values, 0)
        step = np.array(brain.shape) / np.array(shape)
        to_old = np.diag([*step, 1.0])
        to_old[:3, 3] = step / 2 - 0.5
        affine = case.affine @ to_old
        x_mm, y_mm, z_mm = (float(mm * ratio) for mm, ratio in zip(case.spacing_mm, step, strict=True))
        return replace(
            case,
            images=images,
            mask=None if case.mask is None else np.asfortranarray(resample_labels(case.mask, shape)),
            affine=affine,
            spacing_mm=(x_mm, y_mm, z_mm),
            reference=make_header(shape, images.dtype, affine, name=case.reference.name),
        )

    def check_fit(self, case: Case, *, plane: str | None = None, force: bool = False) -> str | None:
        """A warning where the case's pixels differ from the training's low resolution, or None.

        Args:
            case: low resolution as acquired.
            plane: of the slices to super-resolve; by default `plane_of`.
            force: warn even where it would be refused.

        Raises:
            ModelError: its pixels are closer to the model's outputs than to its inputs.
        """
        plane, scale = plane or plane_of(case), self.spec.config.degrade.scale
        made = self._pixel_mm()
        found = _in_plane(case.spacing_mm, plane)
        ratios = [mm / (scale * own) for mm, own in zip(found, made, strict=True)]
        has, wants, makes = (" x ".join(f"{mm:.2f}" for mm in edges) for edges in (
            found, [scale * own for own in made], made,
        ))  # fmt: skip
        seen = f"case {case.case_id} has {plane} pixels of {has} mm"
        if math.sqrt(math.prod(ratios)) < 1 / math.sqrt(scale):
            message = (
                f"{seen}, and the model makes {makes} mm out of {wants} mm: it is at high resolution already"
            )
            if not force:
                raise ModelError(f"{message}; send low resolution, or force it")
            return message
        if find_unlike_axis(found, [scale * own for own in made]) is None:
            return None
        return f"{seen}, but the model was trained to make {makes} mm out of {wants} mm; trust its detail the less"

    def _pixel_mm(self) -> tuple[float, float]:
        """Return the pixel size of the model's outputs in mm, along rows and columns of its training plane."""
        config = self.spec.config
        rows_mm, columns_mm = _in_plane(
            config.preprocess.spacing_mm or self.spec.spacing_mm, config.preprocess.planes[0]
        )
        if config.degrade.cut == "patch":
            return rows_mm, columns_mm
        height, width = (side / config.degrade.hr_size for side in config.preprocess.size)
        return rows_mm * height, columns_mm * width

    def _preparation(self, case: Case) -> PreprocessConfig:
        """Return the preprocessing of an acquired case: that of training without its resampling."""
        config = self.spec.config.preprocess
        if config.clahe:
            raise ModelError(
                "the model was trained on equalised contrast (preprocess.clahe), which cannot be undone; train one "
                "without it to super-resolve cases"
            )
        names = case.modalities if self.spec.config.channels == "each" else config.modalities
        return config.replace(modalities=names, spacing_mm=None)


def plane_of(case: Case) -> str:
    """Find the plane of a case's slices: the one with the squarest pixels, among those the thickest slices.

    Axial if all are equal; a single slice defines its own plane.
    """
    single = [plane for plane, axes in PLANE_AXES.items() if case.images.shape[1 + axes[0]] == 1]
    if single:
        return single[0]

    def rank(plane: str) -> tuple[float, float]:
        rows_mm, columns_mm = _in_plane(case.spacing_mm, plane)
        thickness = case.spacing_mm[PLANE_AXES[plane][0]]
        return round(abs(math.log(rows_mm / columns_mm)), 2), -round(thickness, 2)

    return min(PLANE_AXES, key=rank)


def _in_plane(spacing_mm: tuple[float, float, float], plane: str) -> tuple[float, float]:
    _, rows, columns = PLANE_AXES[plane]
    return spacing_mm[rows], spacing_mm[columns]


def _to_unit(
    image: NDArray[np.generic], brain: NDArray[np.bool_], config: PreprocessConfig, case: Case
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Scale to (X, Y, Z) in [0, 1] as `preprocess` does with "unit"; also return the values mapped to 0 and 1."""
    values = np.asarray(image, np.float32)
    inside = values[brain]
    if not inside.size:
        raise CaseError(
            case.case_id, "", "every voxel is background", "export the images again or drop the case"
        )
    if config.percentiles is not None:
        low, high = np.percentile(inside, config.percentiles)
        values, inside = np.clip(values, low, high), np.clip(inside, low, high)
    low, high = unit_range(inside)
    if high <= low:
        found = f"the brain's intensities end at {high:g}, with nothing above"
        raise CaseError(case.case_id, "", found, "export the images again or drop the case")
    unit = np.clip((values - low) / (high - low), 0, 1) * brain
    return unit.astype(np.float32, copy=False), (low, high)
