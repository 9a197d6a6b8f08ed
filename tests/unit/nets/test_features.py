"""Feature extractors: layers by name, torchvision's weights, grey images and our own encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glioray.nets import build_net
from glioray.nets.features import AlexNetFeatures, ConvStack, EncoderFeatures, GreyFeatures, VggFeatures

_BUILD: dict[str, Callable[[], ConvStack]] = {
    "alexnet": AlexNetFeatures,
    "vgg16": lambda: VggFeatures("vgg16"),
    "vgg19": lambda: VggFeatures("vgg19"),
}


def _sequence(name: str) -> nn.Sequential:
    """The layers in torchvision's order."""
    if name == "alexnet":
        plan: list = [
            (64, 11, 4, 2),
            (3, 2),
            (192, 5, 1, 2),
            (3, 2),
            (384, 3, 1, 1),
            (256, 3, 1, 1),
            (256, 3, 1, 1),
        ]
    else:
        counts = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}[name]
        plan = [
            item
            for width, count in zip((64, 128, 256, 512, 512), counts, strict=True)
            for item in [*[(width, 3, 1, 1)] * count, (2, 2)]
        ]
    layers: list[nn.Module] = []
    source = 3
    for item in plan:
        if len(item) == 2:
            layers.append(nn.MaxPool2d(*item))
        else:
            layers += [nn.Conv2d(source, *item), nn.ReLU()]
            source = item[0]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def build() -> Callable[[str], tuple[ConvStack, nn.Sequential]]:
    """Builds a network with random weights under torchvision's names, and a sequence with the same weights."""

    @functools.cache
    def build(name: str) -> tuple[ConvStack, nn.Sequential]:
        torch.manual_seed(0)
        sequence, net = _sequence(name), _BUILD[name]()
        state = {f"features.{key}": value for key, value in sequence.state_dict().items()}
        net.load_weights({**state, "classifier.0.weight": torch.zeros(2, 2)})
        return net, sequence

    return build


@pytest.mark.parametrize("name", _BUILD)
def test_layers_equal_those_of_torchvisions_sequence(name, build):
    net, sequence = build(name)
    x = torch.rand(1, 3, 35, 33)
    expected = []
    with torch.no_grad():
        found = net(x, net.layers)
        for layer in sequence:
            x = layer(x)
            if not isinstance(layer, nn.MaxPool2d):
                expected.append(x)
    assert list(found) == list(net.layers)
    for layer, value in zip(net.layers, expected, strict=True):
        torch.testing.assert_close(found[layer], value, msg=layer)


def test_layers_are_numbered_within_blocks():
    net = VggFeatures("vgg19")
    assert {"conv1_2", "relu3_4", "conv5_4"} <= set(net.layers)
    assert len(net.layers) == 32
    assert net.levels == ("relu1_2", "relu2_2", "relu3_4", "relu4_4", "relu5_4")
    assert VggFeatures("vgg16").levels == ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    with pytest.raises(ValueError, match="No VGG 'vgg13'; available: vgg16, vgg19"):
        VggFeatures("vgg13")


def test_computation_stops_after_the_deepest_layer(build):
    net, _ = build("vgg16")
    called: list[str] = []
    hooks = [
        conv.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, conv in net.convs.items()
    ]
    with torch.no_grad():
        net(torch.rand(1, 3, 16, 16), ("relu2_1", "conv1_2"))
    for hook in hooks:
        hook.remove()
    assert called == ["1_1", "1_2", "2_1"]


def test_a_layer_is_not_overwritten_by_its_relu(build):
    net, _ = build("alexnet")
    with torch.no_grad():
        found = net(torch.rand(1, 3, 40, 40), ("conv2", "relu2", "conv5"))
    assert (found["conv2"] < 0).any()
    torch.testing.assert_close(found["relu2"], F.relu(found["conv2"]))


def test_a_network_without_weights_raises_an_error():
    with pytest.raises(ValueError, match="the network has no weights; call load_weights"):
        GreyFeatures(VggFeatures("vgg16"))(torch.rand(1, 1, 16, 16), ("conv1_1",))


def test_invalid_layers_images_and_weights_are_reported(build):
    net, sequence = build("alexnet")
    with pytest.raises(ValueError, match="layers: found relu9; expected one or more of conv1, relu1"):
        net(torch.rand(1, 3, 40, 40), ("relu9", "conv1"))
    with pytest.raises(ValueError, match=r"layers: found none"):
        net(torch.rand(1, 3, 40, 40), ())
    with pytest.raises(ValueError, match=r"images of \(20, 64\) are too small for conv3"):
        net(torch.rand(1, 3, 20, 64), ("conv3",))
    state = {f"features.{key}": value for key, value in sequence.state_dict().items()}
    with pytest.raises(ValueError, match=r"5 layers .* 16 convolutions"):
        VggFeatures("vgg19").load_weights(state)
    with pytest.raises(ValueError, match=r"shape \(3,\) under 'features.3.bias', but conv2 has \(192,\)"):
        AlexNetFeatures().load_weights({**state, "features.3.bias": torch.zeros(3)})
    del state["features.0.bias"]
    with pytest.raises(ValueError, match=r"nothing under 'features.0.bias'"):
        AlexNetFeatures().load_weights(state)


def test_each_channel_is_a_grey_image(build):
    net, _ = build("alexnet")
    grey = GreyFeatures(net)
    x = torch.rand(2, 3, 40, 40)
    found = grey(x, ("conv2",))["conv2"]
    assert found.shape[0] == 6
    for image in range(2):
        for channel in range(3):
            rgb = x[image, channel].expand(1, 3, 40, 40)
            # LPIPS's shift and scale, for images in [-1, 1].
            shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
            scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
            expected = net((2 * rgb - 1 - shift) / scale, ("conv2",))["conv2"][0]
            torch.testing.assert_close(found[3 * image + channel], expected, rtol=1e-4, atol=1e-5)


def _check_frozen(features: nn.Module, x: Tensor, layer: str) -> None:
    features.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    whole = features(x, (layer,))[layer]
    with torch.autocast("cpu", torch.bfloat16):
        y = x.clone().requires_grad_()
        found = features(y, (layer,))[layer]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole)
    found.square().sum().backward()
    assert y.grad is not None
    assert y.grad.abs().amax(dim=(2, 3)).min() > 0


def test_extractors_are_frozen_in_float32_and_pass_gradients_to_the_images(build):
    _check_frozen(GreyFeatures(build("alexnet")[0]), torch.rand(2, 2, 40, 40), "relu3")
    torch.manual_seed(0)
    net = build_net("unet", in_channels=2, out_channels=3, width=4, depth=2, norm="batch", dropout=0.5)
    _check_frozen(EncoderFeatures(net), torch.rand(2, 2, 20, 24), "level3")


@pytest.mark.parametrize("options", [{}, {"lean": True}, {"stem_stride": 2}, {"bottleneck": "aspp"}])
def test_the_levels_of_the_encoder_equal_those_of_the_network(options):
    torch.manual_seed(0)
    net = build_net("unet", in_channels=2, out_channels=3, width=4, depth=2, **options).eval()
    unet = net.net if "stem_stride" in options else net
    expected: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: expected.append(args[2])) for block in unet.down]
    x = torch.rand(2, 2, 19, 22)
    with torch.no_grad():
        net(x)
        for hook in hooks:
            hook.remove()
        features = EncoderFeatures(net)
        found = features(x, features.layers)
    assert tuple(found) == features.levels == ("level1", "level2", "level3")
    for name, value in zip(found, expected, strict=True):
        torch.testing.assert_close(found[name], value)


def test_an_encoder_trained_on_z_scores_normalises_its_input():
    torch.manual_seed(0)
    net = build_net("unet", in_channels=2, out_channels=3, width=4, depth=2)
    mean, std = (0.4, 0.5), (0.1, 0.2)
    images = torch.rand(1, 2, 16, 16) * 0.5 + 0.3
    images[..., :8] = 0
    scores = (images - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    scores[..., :8] = 0
    found = EncoderFeatures(net, mean=mean, std=std)(images, ("level2",))
    torch.testing.assert_close(found, EncoderFeatures(net)(scores, ("level2",)))


def test_an_encoder_rejects_other_channels_and_networks():
    net = build_net("unet", in_channels=2, out_channels=3, width=4, depth=2)
    with pytest.raises(ValueError, match="images have 1 channels, but this encoder was trained on 2"):
        EncoderFeatures(net)(torch.rand(1, 1, 16, 16), ("level1",))
    with pytest.raises(ValueError, match="the network is a FCN; expected a UNet"):
        EncoderFeatures(build_net("fcn", in_channels=1, out_channels=3, width=1, fc=False))
    with pytest.raises(ValueError, match="expected both with one number for each of 2 channels"):
        EncoderFeatures(net, mean=(0.1, 0.2))
