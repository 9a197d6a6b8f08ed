"""Fully convolutional networks (Long, Shelhamer, Darrell 2015, arXiv 1411.4038)."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glioray.nets.blocks import pad_to_multiple

_VGG16 = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""Filters of each convolution of VGG16 in multiples of the first; each group is followed by pooling."""


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s with a VGG16 backbone (arXiv 1409.1556).

    (B, in_channels, H, W) to logits (B, out_channels, H, W), any H and W: the input is padded with zeros at the
    bottom and right to a multiple of 32, and the result is cropped. The scores of the deepest features are
    upsampled and, at stride 16 and 8, added to the scores of the fourth and the third pooling.

    The backbone has the layout and keys of torchvision (`features.N.weight`), which is not a dependency.
    Without `weights`, He's initialisation is used (arXiv 1502.01852). With them, the RGB filters of the first
    layer are repeated over the input's channels and scaled by 3 / in_channels, so that sums keep their scale.

    Deviations: bilinear upsampling throughout, where the paper learns the inner deconvolutions; padding to a
    multiple instead of 100 pixels on each side; heads are not initialised with zero.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the logits.
        stride: 32, 16 or 8, of the finest scores.
        width: filters of the first layer; 64 gives VGG16.
        fc: VGG16's two fully connected layers as convolutions (7x7 and 1x1, 64 x width filters) with dropout.
        dropout: probability after each of those layers, in training.
        weights: a .safetensors, .pt or .pth file with VGG16's weights under torchvision's keys; only tensors are
            read. Needs width 64, and `classifier.0` and `.3` if `fc` is set.

    Raises:
        ValueError: an argument out of range, or a file that is missing, not readable or not of VGG16.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        stride: int = 8,
        width: int = 64,
        fc: bool = True,
        dropout: float = 0.5,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise ValueError(f"stride is {stride}; expected 8, 16 or 32")
        if width < 1:
            raise ValueError(f"width is {width}; expected at least 1")
        self.stride = stride
        layers: list[nn.Module] = []
        source = in_channels
        for group in _VGG16:
            for multiple in group:
                layers += [nn.Conv2d(source, multiple * width, 3, padding=1), nn.ReLU(inplace=True)]
                source = multiple * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc: nn.Module = nn.Identity()
        if fc:
            self.fc = nn.Sequential(
                nn.Conv2d(source, 64 * width, 7, padding=3),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
                nn.Conv2d(64 * width, 64 * width, 1),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
            )
            source = 64 * width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.head = nn.Conv2d(source, out_channels, 1)
        # No biases, since these scores are added to the head's.
        self.pool4 = nn.Conv2d(8 * width, out_channels, 1, bias=False) if stride <= 16 else None
        self.pool3 = nn.Conv2d(4 * width, out_channels, 1, bias=False) if stride <= 8 else None
        if weights is not None:
            self._load(Path(weights), in_channels)

    def heads(self) -> list[nn.Conv2d]:
        """The convolutions that give logits; those without a bias add to the first."""
        return [head for head in (self.head, self.pool4, self.pool3) if head is not None]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, 32, at_least=32)
        size = x.shape[-2:]
        third = self.features[:17](x)
        fourth = self.features[17:24](third)
        logits: Tensor = self.head(self.fc(self.features[24:](fourth)))
        for score, features in ((self.pool4, fourth), (self.pool3, third)):
            if score is not None:
                logits = _upsample(logits, features.shape[-2:]) + score(features)
        return _upsample(logits, size)[..., :height, :width]

    def _load(self, path: Path, in_channels: int) -> None:
        found = _read_state(path)
        expected = {f"features.{key}": value for key, value in self.features.state_dict().items()}
        if isinstance(self.fc, nn.Sequential):
            for vgg, ours in (("classifier.0", 0), ("classifier.3", 3)):
                for kind in ("weight", "bias"):
                    expected[f"{vgg}.{kind}"] = self.fc.state_dict()[f"{ours}.{kind}"]
        first = "features.0.weight"
        for key, ours in expected.items():
            if key not in found:
                hint = "; set fc to false, or use a file that has it" if key.startswith("classifier") else ""
                raise ValueError(
                    f"'{path}' has no '{key}'; expected VGG16's weights under torchvision's keys{hint}"
                )
            value = found[key]
            if key == first and value.shape[1:2] == (3,):
                value = value[:, torch.arange(in_channels) % 3] * (3 / in_channels)
            elif value.ndim == 2 and ours.ndim == 4 and value.numel() == ours.numel():
                # A fully connected layer of 512 x 7 x 7 inputs equals a 7x7 convolution, in the same order.
                value = value.reshape(ours.shape)
            if value.shape != ours.shape:
                raise ValueError(
                    f"'{key}' in '{path}' has the shape {tuple(found[key].shape)}; the network expects "
                    f"{tuple(ours.shape)}, so set width to 64 for VGG16's weights"
                )
            ours.copy_(value)


def _upsample(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"weights is '{path}', which does not exist; give the path of a local file")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"weights is '{path}'; expected a .safetensors, .pt or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights '{path}' cannot be read ({error}); give a file that holds only tensors"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"weights '{path}' is not a state dict of tensors; give one")
    return found
