"""Tests specific to the U-Nets, to FCN and to their pyramids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from glioray.losses import build_loss
from glioray.nets import build_net
from glioray.nets.blocks import ConvBlock
from glioray.nets.fcn import FCN
from glioray.nets.outputs import TrainingOutputs
from glioray.nets.pyramid import ASPP, SpatialPyramid
from glioray.nets.unet import UNet
from glioray.nets.unet3p import UNet3P
from glioray.nets.unetpp import UNetPP


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel_size", "dilation", "reach"), [(3, 1, 2), (3, 2, 4), (3, 5, 10), (1, 3, 0)])
def test_dilation_widens_the_receptive_field_of_a_block(kernel_size: int, dilation: int, reach: int):
    block = ConvBlock(1, 4, norm="none", kernel_size=kernel_size, dilation=dilation)
    images = _noise(1, 1, 31, 31).requires_grad_()
    output = block(images)
    assert output.shape == (1, 4, 31, 31)
    output[0, :, 15, 15].sum().backward()
    rows = images.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (15 - reach, 15 + reach)


@pytest.mark.parametrize("build", [ASPP, SpatialPyramid])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_pyramids_accept_any_size_and_read_the_whole_image(build: type[ASPP | SpatialPyramid], norm: str):
    pyramid = build(6, 8, norm=norm)
    for size in ((2, 2), (5, 7), (33, 20)):
        assert pyramid(_noise(2, 6, *size)).shape == (2, 8, *size)
    images = _noise(1, 6, 64, 64).requires_grad_()
    pyramid.eval()(images)[0, :, 0, 0].sum().backward()
    assert (images.grad[0].abs().amax(0) > 0).all()


def test_aspp_has_a_branch_for_each_rate():
    pyramid = ASPP(6, 8, rates=(1, 2), branch_channels=5, norm="none")
    rates = [
        block.layers[0].dilation[0] for block in pyramid.branches if block.layers[0].kernel_size == (3, 3)
    ]
    assert rates == [1, 2]
    assert sum(p.numel() for p in pyramid.parameters()) == (
        2 * (6 * 5 + 5) + 2 * (9 * 6 * 5 + 5) + (4 * 5 * 8 + 8)
    )


def _keras_count(net: nn.Module) -> int:
    """The parameters as Keras counts them: a bias in every convolution, and running statistics included."""
    biases = sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None)
    statistics = sum(buffer.numel() for buffer in net.buffers() if buffer.ndim)
    return sum(parameter.numel() for parameter in net.parameters()) + biases + statistics


@pytest.mark.parametrize(("bridge", "expected"), [(True, 46_774_852), (False, 22_117_956)])
def test_three_convolutions_as_keras_counts_them(bridge: bool, expected: int):
    with torch.device("meta"):
        net = UNet(in_channels=4, out_channels=4, norm="batch", num_convs=3, bridge=bridge)
    assert _keras_count(net) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": 0}, "dilation is 0"),
        ({"bottleneck": "fpn"}, "bottleneck is 'fpn'; expected one of plain, aspp, spp"),
        ({"bottleneck": "aspp", "bridge": False}, "bottleneck is 'aspp'; expected 'plain' without bridge"),
        ({"upsample": "cubic"}, "upsample is 'cubic'; expected one of nearest, transposed"),
        ({"lean": True, "bridge": False}, "lean is set; expected the defaults of bridge"),
    ],
    ids=str,
)
def test_unet_options_out_of_range(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        UNet(in_channels=4, out_channels=3, **options)


@pytest.mark.parametrize("prune", [1, 2])
def test_a_pruned_unetpp_equals_the_column_of_the_whole_network(prune: int):
    torch.manual_seed(0)
    options = {"in_channels": 4, "out_channels": 3, "width": 4, "depth": 3}
    whole = UNetPP(**options, deep_supervision=True)
    images = _noise(2, 4, 37, 53)
    found = whole(images)
    assert isinstance(found, TrainingOutputs)
    assert len(found.sides) == 2
    for deep_supervision in (True, False):
        pruned = UNetPP(**options, deep_supervision=deep_supervision, prune=prune)
        pruned.load_state_dict(whole.state_dict())
        assert len(pruned.nodes) < len(whole.nodes)
        torch.testing.assert_close(pruned.eval()(images), found.sides[2 - prune])
    torch.testing.assert_close(whole.eval()(images), found.logits)


def test_a_pruned_unetpp_rejects_the_weights_of_another_network():
    options = {"in_channels": 4, "out_channels": 3, "width": 4}
    deeper = UNetPP(**options, depth=3).state_dict()
    for pruned in (UNetPP(**options, depth=2), UNetPP(**options, depth=2, prune=1, deep_supervision=True)):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            pruned.load_state_dict(deeper)
    with pytest.raises(ValueError, match="prune is 3; expected a column from 1 to depth, which is 2"):
        UNetPP(**options, depth=2, prune=3)


def test_a_unetpp_of_depth_1_is_a_unet():
    """With depth 1 there are no columns in between, so both have the same convolutions."""
    torch.manual_seed(0)
    plus = UNetPP(in_channels=4, out_channels=3, width=4, depth=1)
    unet = UNet(in_channels=4, out_channels=3, width=4, depth=1)
    parts = {"nodes.0_0": "down.0", "nodes.1_0": "down.1", "ups.0_1": "up.0", "nodes.0_1": "merge.0"}
    state = plus.state_dict()
    for old, new in {**parts, "outputs.1": "head"}.items():
        state = {f"{new}{key[len(old) :]}" if key.startswith(old) else key: v for key, v in state.items()}
    unet.load_state_dict(state)
    images = _noise(2, 4, 21, 34)
    torch.testing.assert_close(plus(images), unet(images))


def test_every_decoder_level_of_unet3p_reads_every_level():
    net = UNet3P(in_channels=4, out_channels=3, width=4, depth=3, cat_channels=4)
    seen: dict[str, tuple[int, ...]] = {}
    for key, block in net.sources.items():
        block.register_forward_hook(lambda _m, given, _out, key=key: seen.update({key: given[0].shape[1:]}))
    net(_noise(1, 4, 64, 32))
    merged = 4 * 4
    assert seen == {
        f"{level}_{source}": (
            merged if level < source < 3 else 4 << source,
            64 >> level,
            32 >> level,
        )
        for level in range(3)
        for source in range(4)
    }


def test_unet3p_has_side_outputs_of_every_level_at_full_size():
    net = UNet3P(in_channels=4, out_channels=3, width=4, depth=3, cat_channels=4, deep_supervision=True)
    found = net(_noise(2, 4, 37, 53))
    assert [tuple(side.shape) for side in found.sides] == [(2, 3, 37, 53)] * 3
    assert found.presence is None
    assert len(net.heads()) == 4
    assert isinstance(net.eval()(_noise(2, 4, 37, 53)), torch.Tensor)


def test_unet3ps_gate_removes_absent_channels():
    torch.manual_seed(0)
    net = UNet3P(in_channels=4, out_channels=3, width=4, depth=2, cat_channels=4, classify=True)
    last = net.presence[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, -1.0, 0.5]))
    images = _noise(2, 4, 16, 24)
    found = net(images)
    torch.testing.assert_close(found.presence, torch.tensor([[1.0, -1.0, 0.5]]).expand(2, 3))
    logits = net.eval()(images)
    torch.testing.assert_close(logits[:, [0, 2]], found.logits[:, [0, 2]])
    assert (logits[:, 1] == -20).all()
    assert (found.logits[:, 1] != -20).all()


def test_every_gate_of_a_folded_unet3p_learns():
    """Each pixel of a square has its own gate in evaluation, so each must be trained."""
    torch.manual_seed(0)
    net = build_net(
        "unet3p",
        in_channels=4,
        out_channels=3,
        width=4,
        depth=1,
        cat_channels=4,
        classify=True,
        stem_stride=2,
    )
    last = net.net.presence[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.linspace(-1, 1, 12))
    masks = torch.zeros(2, 16, 24, dtype=torch.uint8)
    masks[:, 4:6, 7:9] = 3  # WT, TC and ET are in both slices
    net.zero_grad()
    build_loss("region_dice_bce", presence_weight=1e6)(net(_noise(2, 4, 16, 24)), masks).backward()
    assert (last.bias.grad < -1).all()


@pytest.mark.parametrize("build", [UNet, UNet3P])
def test_without_bridge_the_deepest_level_is_the_one_above_pooled(build: type[UNet | UNet3P]):
    net = build(in_channels=4, out_channels=3, width=4, depth=2, bridge=False)
    levels = net.down if isinstance(net, UNet) else net.encoder
    assert not list(levels[2].parameters())
    seen: list[torch.Tensor] = []
    for level in (1, 2):
        levels[level].register_forward_hook(lambda _m, _given, output: seen.append(output))
    net(_noise(1, 4, 16, 16))
    assert torch.equal(F.max_pool2d(seen[0], 2), seen[1])


def test_unet3p_options_out_of_range():
    with pytest.raises(ValueError, match="width is 4, cat_channels is 0 and depth is 2; expected"):
        UNet3P(in_channels=4, out_channels=3, width=4, depth=2, cat_channels=0)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_finest_scores_of_fcn_have_its_stride(stride: int):
    torch.manual_seed(0)
    net = FCN(in_channels=4, out_channels=3, stride=stride, width=4, fc=False).eval()
    scores: list[torch.Size] = []
    for layer in (net.pool3, net.pool4, net.head):
        if layer is not None:
            layer.register_forward_hook(lambda _m, _given, output: scores.append(output.shape[-2:]))
    assert net(_noise(1, 4, 70, 96)).shape == (1, 3, 70, 96)
    assert min(96 // size[-2] for size in scores) == stride
    assert len(scores) == {8: 3, 16: 2, 32: 1}[stride]


def _vgg(width: int, *, fully_connected: bool) -> dict[str, torch.Tensor]:
    """The state dict of a VGG16 of another width under torchvision's keys."""
    shapes: dict[str, tuple[int, ...]] = {}
    source = 3
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for number, multiple in zip(numbers, (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8), strict=True):
        shapes[f"features.{number}"] = (multiple * width, source, 3, 3)
        source = multiple * width
    if fully_connected:
        shapes["classifier.0"] = (64 * width, source * 49)
        shapes["classifier.3"] = (64 * width, 64 * width)
    shapes["classifier.6"] = (10, 64 * width)
    state = {}
    for seed, (key, shape) in enumerate(shapes.items()):
        state[f"{key}.weight"] = _noise(*shape, seed=seed)
        state[f"{key}.bias"] = _noise(shape[0], seed=100 + seed)
    return state


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_fcn_loads_the_weights_of_a_file(tmp_path: Path, suffix: str):
    state = _vgg(2, fully_connected=True)
    path = tmp_path / f"vgg.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    net = FCN(in_channels=3, out_channels=2, width=2, weights=str(path))
    for key, value in net.features.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"]), key
    # On the 7x7 features of a 224 x 224 image, the convolution equals the fully connected layer.
    features = _noise(2, 16, 7, 7)
    expected = F.linear(features.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"])
    torch.testing.assert_close(net.fc[0](features)[..., 3, 3], expected, rtol=1e-4, atol=1e-3)
    expected = F.linear(expected, state["classifier.3.weight"], state["classifier.3.bias"])
    hidden = net.fc[0](features)[..., 3:4, 3:4]
    torch.testing.assert_close(net.fc[3](hidden).flatten(1), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("in_channels", [1, 4, 5, 12])
def test_the_first_layer_is_repeated_over_the_inputs_channels(tmp_path: Path, in_channels: int):
    state = _vgg(2, fully_connected=False)
    safetensors.torch.save_file(state, tmp_path / "vgg.safetensors")
    weights = str(tmp_path / "vgg.safetensors")
    net = FCN(in_channels=in_channels, out_channels=2, width=2, fc=False, weights=weights)
    first = net.features[0].weight
    for channel in range(in_channels):
        expected = state["features.0.weight"][:, channel % 3] * 3 / in_channels
        torch.testing.assert_close(first[:, channel], expected)


def test_weights_that_are_not_of_vgg16_are_rejected(tmp_path: Path):
    def check_rejected(name: str, message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            FCN(in_channels=4, out_channels=3, weights=str(tmp_path / name), **{"width": 2, **options})

    state = _vgg(2, fully_connected=False)
    safetensors.torch.save_file(state, tmp_path / "features.safetensors")
    check_rejected("absent.pt", "absent.pt', which does not exist")
    check_rejected("features.safetensors", r"has no 'classifier.0.weight'.* set fc to false")
    check_rejected(
        "features.safetensors",
        r"'features.0.weight' in '.*' has the shape \(2, 3, 3, 3\); .* set width to 64",
        width=4,
        fc=False,
    )
    del state["features.28.bias"]
    torch.save(state, tmp_path / "short.pth")
    check_rejected("short.pth", "has no 'features.28.bias'", fc=False)
    torch.save([1, 2], tmp_path / "list.pt")
    check_rejected("list.pt", "is not a state dict of tensors")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    check_rejected("module.pt", "cannot be read")
    for suffix in ("pt", "safetensors"):
        (tmp_path / f"noise.{suffix}").write_bytes(b"neither")
        check_rejected(f"noise.{suffix}", "cannot be read")
    (tmp_path / "vgg.h5").write_bytes(b"")
    check_rejected("vgg.h5", "expected a .safetensors, .pt or .pth file")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stride": 4}, "stride is 4; expected 8"), ({"width": 0}, "width is 0; expected")],
)
def test_fcn_options_out_of_range(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        FCN(in_channels=4, out_channels=3, **options)
