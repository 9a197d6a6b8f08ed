"""A model that makes slices sharper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from glioray.errors import ModelError
from glioray.inference.predictor import autocast, to_device
from glioray.inference.superres_package import SuperResSpec, read_superres

Size = tuple[int, int]


class SuperResolver:
    """Makes low-resolution images sharper; safe to call from one thread at a time."""

    def __init__(
        self, spec: SuperResSpec, nets: Mapping[str, nn.Module], device: str = "cpu", batch_size: int = 16
    ) -> None:
        self.spec, self.device, self.batch_size = spec, torch.device(device), batch_size
        self.nets = {stage: to_device(net, self.device).eval() for stage, net in nets.items()}
        self._mixed: tuple[float, nn.Module] | None = None

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> SuperResolver:
        """The model of a package folder, on the GPU where there is one unless told otherwise."""
        spec, nets = read_superres(folder)
        return cls(spec, nets, device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def generator(self, blend: float | None = None) -> nn.Module:
        """The generator between the PSNR one (0) and the GAN one (1): `(1 - blend) * PSNR + blend * GAN`, by weights.

        Without `blend` the one that the training ended with.

        Raises:
            ModelError: a blend outside [0, 1], or one that asks for a generator which the model does not hold.

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
                f"the model holds no {lacking[0]} generator, only {', '.join(self.nets)}; blend {blend:g} needs it, so "
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

    def images(self, lr: Tensor, size: Size | None = None, blend: float | None = None) -> Tensor:
        """(N, C, H, W) float32 on the CPU of low-resolution images (N, C, h, w) in [0, 1]; not clipped.

        A model of one channel makes each of the C channels an image of its own.

        Args:
            lr: the images.
            size: (H, W) of the result; by default the model's scale times (h, w).
            blend: of `generator`.

        Raises:
            ModelError: as `generator`; or C is not what the model takes.
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
        with torch.inference_mode(), autocast(self.device, self.spec.config.train.precision):
            for part in rows.split(self.batch_size):
                part = part.float().to(self.device).contiguous(memory_format=torch.channels_last)
                parts.append(net(part, size).float().cpu())
        return torch.cat(parts).reshape(num, channels, *size)
