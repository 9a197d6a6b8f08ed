"""The export of a network says what the network says."""

import logging
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from mlflow.models import Model
from torch import nn

from glioray.engine.on_mlflow.export import save_export
from glioray.errors import ModelError
from glioray.nets import build_net

pytestmark = pytest.mark.contracts


class _Positioned(nn.Module):
    """Fixed to 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 4, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.position


class _OfTwo(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.ones(2, 1, 1, 1)


class _DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x


class _Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def _signature(folder: Path) -> tuple[list[int], list[int]]:
    signature = Model.load(folder).signature
    return list(signature.inputs.inputs[0].shape), list(signature.outputs.inputs[0].shape)


def test_the_unets_export_equals_it_for_other_batches_and_sizes(tmp_path: Path):
    net = build_net("unet", in_channels=4, out_channels=3, width=4, depth=2, stem_stride=2)
    net.train()
    assert save_export(net, torch.zeros(1, 4, 32, 32), tmp_path / "m", run_id="r") == (
        "batch",
        "height",
        "width",
    )
    assert net.training, "exporting leaves the network as it was"
    assert _signature(tmp_path / "m") == ([-1, 4, -1, -1], [-1, 3, -1, -1])
    loaded = mlflow.pytorch.load_model(str(tmp_path / "m"))
    net.eval()
    for shape in ((1, 4, 32, 32), (5, 4, 32, 32), (2, 4, 48, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), net(x), rtol=1e-4, atol=1e-5)
    # A size that the export cannot take fails loudly.
    with pytest.raises(AssertionError, match="Guard failed"):
        loaded(torch.zeros(1, 4, 33, 32))


def test_a_network_of_one_size_is_exported_for_it_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="glioray"):
        assert save_export(_Positioned(), torch.zeros(1, 4, 16, 16), tmp_path / "m", run_id="r") == ("batch",)
    assert "fixed to height 16, width 16" in caplog.text
    assert _signature(tmp_path / "m") == ([-1, 4, 16, 16], [-1, 4, 16, 16])
    assert Model.load(tmp_path / "m").metadata["dynamic_axes"] == "batch"
    assert mlflow.pytorch.load_model(str(tmp_path / "m"))(torch.zeros(7, 4, 16, 16)).shape == (7, 4, 16, 16)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (_OfTwo(), "can only be exported for batches of 2"),
        (_DataDependent(), "cannot be exported"),
        (_Random(), "differs from it"),
    ],
)
def test_what_cannot_be_exported_is_told(tmp_path: Path, net: nn.Module, message: str):
    with pytest.raises(ModelError, match=message):
        save_export(net, torch.zeros(1, 4, 16, 16), tmp_path / "m", run_id="r")
