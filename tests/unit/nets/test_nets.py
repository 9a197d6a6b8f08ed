"""The same tests for every network of the registry, with every option that changes its shape."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from glioray.nets import SEGMENTATION_NETS, build_net
from glioray.nets.folded import FoldedNet
from glioray.nets.outputs import TrainingOutputs

pytestmark = pytest.mark.contracts

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "unet": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 4, "max_width": 8},
        {"width": 4, "depth": 2, "stem_stride": 2},
        {"width": 4, "depth": 1, "stem_stride": 4},
        {"width": 6, "depth": 2, "norm": "group"},
        {"width": 4, "depth": 2, "norm": "batch"},
        {"width": 4, "depth": 2, "norm": "none"},
        {"width": 4, "depth": 2, "residual": True, "stem_stride": 2},
        {"width": 4, "depth": 2, "num_convs": 3, "dropout": 0.2},
        {"width": 4, "depth": 2, "stem_stride": 2, "lean": True, "norm": "batch", "prior": 0.12},
        {"width": 4, "depth": 2, "lean": True, "residual": True},
        {"width": 4, "depth": 2, "bridge": False, "dilation": 2, "upsample": "nearest"},
        {"width": 4, "depth": 2, "bottleneck": "aspp"},
        {"width": 4, "depth": 2, "bottleneck": "spp"},
    ],
    "resunet": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 3, "attention": False, "norm": "instance"},
        {"width": 4, "depth": 1, "norm": "none"},
    ],
    "resunetpp": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 3, "bridge": False, "norm": "instance"},
        {"width": 4, "depth": 1, "norm": "none"},
    ],
    "u2net": [{"width": 4}],
    "u2netp": [{"width": 4}, {"width": 8, "norm": "instance"}],
    "dynunet": [
        {"width": 4, "depth": 3, "deep_supervision": True},
        {"width": 4, "depth": 4, "max_width": 8, "residual": True, "norm": "batch"},
        {"width": 8, "depth": 2, "dropout": 0.2, "norm": "group"},
    ],
    "resenc": [
        {"width": 4, "blocks": [1, 2, 2, 1], "deep_supervision": True},
        {"width": 4, "blocks": [1, 2], "deep_supervision": True},
        {"width": 4, "blocks": [1, 1, 1], "norm": "batch"},
    ],
    "segresnet": [
        {"width": 4},
        {"width": 8, "norm": "group", "blocks_down": [1, 2], "blocks_up": [2], "dropout": 0.2},
    ],
    "attention_unet": [{"width": 4, "depth": 2}, {"width": 2, "depth": 3, "dropout": 0.2}],
    "swin_unetr": [{"width": 12, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 3, 3], "window": 4}],
    "unetpp": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 3, "deep_supervision": True, "norm": "batch"},
        {"width": 4, "depth": 3, "deep_supervision": True, "prune": 2},
    ],
    "unet3p": [
        {"width": 4, "depth": 2, "cat_channels": 4},
        {"width": 4, "depth": 2, "cat_channels": 4, "deep_supervision": True, "classify": True},
        {"width": 4, "depth": 2, "cat_channels": 4, "bridge": False, "num_convs": 3},
    ],
    "fcn": [
        {"width": 2, "stride": 8, "fc": False},
        {"width": 2, "stride": 16},
        {"width": 2, "stride": 32, "fc": False},
    ],
}
"""Small variants of each network; a new network is tested by adding them here."""

# A change here means that published checkpoints no longer load.
NUM_PARAMETERS = {
    ("unet", "width 64, depth 4"): ({}, 4, 3, 31_038_339),
    ("unet", "half resolution"): ({"width": 32, "depth": 3, "stem_stride": 2}, 4, 3, 1_931_116),
    ("unet", "lean"): ({"width": 32, "depth": 3, "stem_stride": 2, "lean": True}, 4, 3, 1_414_348),
    ("unet", "residual"): ({"width": 8, "depth": 2, "residual": True}, 12, 4, 31_676),
    ("unet", "batch norm"): ({"width": 8, "depth": 2, "norm": "batch"}, 4, 3, 29_715),
    ("unet", "no norm"): ({"width": 8, "depth": 2, "norm": "none"}, 4, 3, 29_555),
    # The counts of a Keras study of U-Nets on BraTS; nets/README.md explains them.
    ("unet", "study"): ({"norm": "none"}, 4, 4, 31_032_516),
    ("unet", "study, dropout"): ({"norm": "none", "dropout": 0.2}, 4, 4, 31_032_516),
    ("unet", "study, dilation"): (
        {"norm": "none", "dilation": 2, "upsample": "nearest"},
        4,
        4,
        31_379_716,
    ),
    ("unet", "study, without bridge"): ({"norm": "none", "bridge": False}, 4, 4, 15_826_116),
    ("resunet", "default"): ({}, 4, 3, 8_350_502),
    ("resunet", "without attention"): ({"attention": False}, 4, 3, 8_220_355),
    # Published: 4,070,385, of which 7,392 are running statistics and 3,376 biases made redundant by a norm.
    ("resunetpp", "paper"): ({}, 3, 1, 4_070_385 - 7_392 - 3_376),
    ("resunetpp", "without bridge"): ({"bridge": False}, 4, 4, 1_689_140),
    # Published: 44,009,869 and 1,131,181, of which 14,400 and 2,848 are such biases.
    ("u2net", "paper"): ({}, 3, 1, 44_009_869 - 14_400),
    ("u2netp", "paper"): ({}, 3, 1, 1_131_181 - 2_848),
    ("dynunet", "default"): ({}, 4, 3, 20_612_067),
    ("resenc", "default"): ({}, 4, 3, 41_533_411),
    ("segresnet", "default"): ({}, 4, 3, 6_299_427),
    ("attention_unet", "default"): ({}, 4, 3, 31_741_043),
    ("swin_unetr", "default"): ({}, 4, 3, 6_307_917),
    ("unetpp", "default"): ({}, 4, 3, 9_046_179),
    ("unetpp", "deep supervision"): ({"deep_supervision": True}, 4, 3, 9_046_476),
    ("unet3p", "default"): ({}, 4, 3, 26_971_587),
    ("unet3p", "supervised"): ({"deep_supervision": True, "classify": True}, 4, 3, 27_028_242),
    ("unet3p", "without bridge"): ({"bridge": False}, 4, 3, 11_632_067),
    ("fcn", "8s of the paper"): ({}, 3, 21, 134_362_709),
    ("fcn", "32s of the paper"): ({"stride": 32}, 3, 21, 134_346_581),
    ("fcn", "without fc"): ({"fc": False}, 4, 3, 14_719_107),
}

# torch.export fixes these to the example's height and width, since their windows are laid out by Python numbers.
FIXED_SIZE = {"swin_unetr"}

EVERY = pytest.mark.parametrize("name", VARIANTS)
FIRST = pytest.mark.parametrize(
    ("name", "options"), [(name, VARIANTS[name][0]) for name in VARIANTS], ids=VARIANTS
)
# For slow tests: U²-NetP stands for U²-Net, which is the same class.
DISTINCT = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(name, VARIANTS[name][0], id=name) for name in VARIANTS if name != "u2net"],
)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _build(name: str, options: dict[str, Any], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_net(name, in_channels=4, out_channels=3, **options)


def _outputs(found: Tensor | TrainingOutputs) -> list[Tensor]:
    """All outputs to which a loss can be applied."""
    if isinstance(found, Tensor):
        return [found]
    return [found.logits, *found.sides, *([] if found.presence is None else [found.presence])]


def test_every_network_is_tested():
    assert set(VARIANTS) == set(SEGMENTATION_NETS)
    assert {name for name, _ in NUM_PARAMETERS} == set(SEGMENTATION_NETS)


@EVERY
def test_logits_have_the_images_size(name: str, subtests: pytest.Subtests):
    for options, size in itertools.product(VARIANTS[name], [(32, 48), (37, 53)]):
        with subtests.test(options=options, size=size):
            logits = _build(name, options).eval()(_noise(2, 4, *size))
            assert isinstance(logits, Tensor), "side outputs are for training"
            assert logits.shape == (2, 3, *size)
            assert logits.dtype == torch.float32
            assert torch.isfinite(logits).all()


@EVERY
def test_images_smaller_than_the_deepest_level(name: str, subtests: pytest.Subtests):
    for options, size in itertools.product(VARIANTS[name], [(1, 1), (16, 16), (3, 70)]):
        with subtests.test(options=options, size=size):
            found = _build(name, options)(_noise(2, 4, *size))
            if isinstance(found, TrainingOutputs):
                assert found.presence is None or found.presence.shape == (2, 3)
                assert all(side.shape == (2, 3, *size) for side in found.sides)
                found = found.logits
            assert found.shape == (2, 3, *size)


@FIRST
def test_any_number_of_channels(name: str, options: dict[str, Any], subtests: pytest.Subtests):
    for in_channels, out_channels in itertools.product((5, 12), (1, 4)):
        with subtests.test(in_channels=in_channels, out_channels=out_channels):
            net = build_net(name, in_channels=in_channels, out_channels=out_channels, **options).eval()
            assert net(_noise(1, in_channels, 32, 32)).shape == (1, out_channels, 32, 32)


def _assert_every_parameter_learns(net: nn.Module) -> None:
    outputs = _outputs(net(_noise(2, 4, 37, 53)))
    sum((output * _noise(*output.shape, seed=1)).mean() for output in outputs).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        # A bias before a normalisation has no effect; whether its gradient rounds to exactly 0 is up to the CPU.
        assert key.endswith("bias") or parameter.grad.abs().max() > 0, key


@EVERY
def test_every_parameter_gets_a_finite_gradient(name: str, subtests: pytest.Subtests):
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            _assert_every_parameter_learns(_build(name, options))


@FIRST
def test_every_network_runs_on_folded_pixels(name: str, options: dict[str, Any]):
    net = _build(name, {**options, "stem_stride": 2})
    images = _noise(2, 4, 37, 53)
    whole = _outputs(_build(name, options)(images))
    assert [output.shape for output in _outputs(net(images))] == [output.shape for output in whole]
    _assert_every_parameter_learns(net)
    assert net.eval()(images).shape == (2, 3, 37, 53)


@EVERY
def test_a_state_dict_can_be_saved_and_loaded(name: str, subtests: pytest.Subtests):
    for options in VARIANTS[name]:
        with subtests.test(options=options):
            net = _build(name, options, seed=1)
            net(_noise(2, 4, 32, 32))  # updates running statistics
            other = _build(name, options, seed=2)
            images = _noise(2, 4, 32, 32, seed=3)
            expected = net.eval()(images)
            assert not torch.equal(expected, other.eval()(images))
            state = net.state_dict()
            other.load_state_dict(state)
            assert torch.equal(other(images), expected)
            # An export copies a network that has just been trained.
            assert torch.equal(copy.deepcopy(net)(images), expected)
            # safetensors rejects tensors that share memory, as those of a module registered twice would.
            places = [tensor.data_ptr() for tensor in state.values()]
            assert len(set(places)) == len(places)


# In double precision only the order of the arithmetic differs, however deep the network.
@EVERY
def test_batched_equals_one_by_one(name: str, subtests: pytest.Subtests):
    images = _noise(3, 4, 37, 40).double()
    for options in VARIANTS[name]:
        with subtests.test(options=options), torch.no_grad():
            net = _build(name, options).eval().double()
            single = torch.cat([net(image[None]) for image in images])
            torch.testing.assert_close(net(images), single, rtol=1e-7, atol=1e-8)


@EVERY
def test_channels_last_changes_nothing(name: str, subtests: pytest.Subtests):
    images = _noise(2, 4, 32, 40).double()
    for options in VARIANTS[name]:
        with subtests.test(options=options), torch.no_grad():
            net = _build(name, options).eval().double()
            expected = net(images)
            last = net.to(memory_format=torch.channels_last)
            found = last(images.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@FIRST
def test_half_precision_stays_finite(name: str, options: dict[str, Any]):
    net = _build(name, options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = _outputs(net(3 * _noise(2, 4, 32, 32) + 1))
    assert all(torch.isfinite(output).all() for output in outputs)
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@FIRST
def test_the_heads_give_the_logits(name: str, options: dict[str, Any]):
    """With zero weights, the outputs are the `prior` in the heads' biases."""
    net = _build(name, {**options, "prior": 0.12})
    with torch.no_grad():
        for head in net.heads():
            head.weight.zero_()
        found = net(_noise(2, 4, 32, 32))
    for output in [found] if isinstance(found, Tensor) else [found.logits, *found.sides]:
        torch.testing.assert_close(output.sigmoid(), torch.full_like(output, 0.12))


def _learns(net: nn.Module, square: int) -> bool:
    """Whether the network classifies 90 % of a batch's pixels correctly within 60 steps on that batch."""
    images = _noise(2, 4, 32 // square, 32 // square, seed=4)
    images = images.repeat_interleave(square, 2).repeat_interleave(square, 3)
    targets = (images[:, :3] + images[:, 1:] > 0).float()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        outputs = [output for output in _outputs(net(images)) if output.ndim == 4]
        if float(((outputs[0] > 0) == targets.bool()).float().mean()) > 0.9:
            return True
        optimizer.zero_grad()
        sum(F.binary_cross_entropy_with_logits(output, targets) for output in outputs).backward()
        optimizer.step()
    return False


# Changed options, and the size of the squares; by default 16 filters and squares of 4 x 4 pixels.
OVERFIT: dict[str, tuple[dict[str, Any], int]] = {
    "fcn": ({"width": 8, "dropout": 0.0}, 16),  # its scores are eight times coarser than the pixels
    "swin_unetr": ({}, 4),
}


@DISTINCT
def test_overfits_one_batch(name: str, options: dict[str, Any]):
    changes, square = OVERFIT.get(name, ({"width": 16}, 4))
    assert _learns(_build(name, {**options, **changes}), square)


@DISTINCT
def test_the_export_equals_the_network(name: str, options: dict[str, Any]):
    net = _build(name, options).eval().double()
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    shapes = [(2, 4, 64, 64), (3, 4, 64, 64)] if name in FIXED_SIZE else [(2, 4, 64, 64), (3, 4, 128, 192)]
    with torch.no_grad():
        program = torch.export.export(net, (_noise(2, 4, 64, 64).double(),), dynamic_shapes=dynamic)
        for shape in shapes:
            images = _noise(*shape, seed=5).double()
            torch.testing.assert_close(program.module()(images), net(images), rtol=1e-7, atol=1e-8)


class _FixedSize(nn.Module):
    """Like SwinUNETR, which cannot be exported with dynamic sizes."""

    fixed = True

    def forward(self, x: Tensor) -> Tensor:
        assert all(is_concrete_int(side) for side in x.shape[-2:])
        return x


def test_folding_gives_a_network_of_fixed_size_concrete_sizes():
    net = FoldedNet(_FixedSize(), 2).eval()
    images = _noise(2, 4, 37, 40)
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    program = torch.export.export(net, (images,), dynamic_shapes=dynamic)
    assert torch.equal(program.module()(images), images)


@pytest.mark.parametrize("key", NUM_PARAMETERS, ids=" ".join)
def test_number_of_parameters(key: tuple[str, str]):
    options, in_channels, out_channels, expected = NUM_PARAMETERS[key]
    with torch.device("meta"):
        net = build_net(key[0], in_channels=in_channels, out_channels=out_channels, **options)
    assert all(parameter.is_meta for parameter in net.parameters())
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_an_unknown_name_lists_the_networks():
    with pytest.raises(ValueError, match=r"No network 'resnet9000'; available: .*unet"):
        build_net("resnet9000", in_channels=4, out_channels=3)


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match=r"network 'unet' does not accept these options: .*'girth'"):
        build_net("unet", in_channels=4, out_channels=3, girth=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0 .*; expected width >= 1"),
        ({"depth": 0}, "depth is 0; expected .* depth from 1 to 7"),
        ({"depth": 8}, "depth is 8; expected .* depth from 1 to 7"),
        ({"stem_stride": 3}, "stem_stride is 3; expected 1, 2 or 4"),
        ({"norm": "layer"}, "norm is 'layer'; expected one of batch, group, instance, none"),
        ({"prior": 1.0}, "prior is 1.0; expected a probability"),
        ({"num_convs": 0}, "num_convs is 0 .*; expected integers of at least 1"),
        ({"dilation": 1.5}, "dilation is 1.5; expected integers of at least 1"),
        ({"dilation": 0}, "dilation is 0; expected integers of at least 1"),
        ({"max_width": 0}, "max_width is 0; expected at least 1"),
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build_net("unet", in_channels=4, out_channels=3, **options)


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_the_stem_keeps_pixels_in_place(stem_stride: int):
    """With weights that make the network the identity, each pixel keeps its position."""
    net = build_net(
        "unet",
        in_channels=3,
        out_channels=3,
        width=3 * stem_stride**2,
        depth=1,
        norm="none",
        stem_stride=stem_stride,
    )
    area = stem_stride**2
    unet = net.net if stem_stride > 1 else net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        # Each convolution passes its channels on; the merge reads only the skip.
        for block in (unet.down[0], unet.merge[0]):
            for layer in block.layers:
                if isinstance(layer, nn.Conv2d):
                    for channel in range(3 * area):
                        layer.weight[channel, channel, 1, 1] = 1
        unet.head.weight[:, :, 0, 0] = torch.eye(3 * area)
    images = _noise(2, 3, 21, 34).abs()  # positive values pass the activations unchanged
    torch.testing.assert_close(net(images), images, rtol=0, atol=0)


@pytest.mark.parametrize("prior", [0.12, 0.9])
def test_the_prior_is_the_initial_output(prior: float):
    net = build_net("unet", in_channels=4, out_channels=3, width=4, depth=1, prior=prior)
    with torch.no_grad():
        net.head.weight.zero_()
    probs = net(_noise(1, 4, 16, 16)).sigmoid()
    torch.testing.assert_close(probs, torch.full_like(probs, prior))
