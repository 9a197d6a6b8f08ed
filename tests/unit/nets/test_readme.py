"""The tables in nets/README.md match the networks."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch

import glioray.nets
from glioray.nets import SEGMENTATION_NETS, build_net
from glioray.nets.gan import DISCRIMINATORS, GENERATORS

README = Path(glioray.nets.__file__).parent / "README.md"


def _rows(*, gan: bool = False) -> dict[str, list[str]]:
    text = README.read_text().partition("\n## Super-resolution GANs\n")[2 if gan else 0]
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row for row in rows}


def test_the_table_names_every_network_with_its_file_and_its_parameters():
    rows = _rows()
    assert set(rows) == set(SEGMENTATION_NETS)
    for name, (_, _, file, _, parameters) in rows.items():
        assert (README.parent / file.split("`")[-2]).is_file(), name
        # SwinUNETR reads values of tensors while it is built, which the meta device does not have.
        with torch.device("cpu" if name == "swin_unetr" else "meta"):
            net = build_net(name, in_channels=4, out_channels=3)
        count = sum(parameter.numel() for parameter in net.parameters())
        assert parameters.split()[0].rstrip(";") == f"{count:,}", name


def test_the_table_of_gans_names_every_network_with_its_options_and_its_parameters():
    rows = _rows(gan=True)
    nets = GENERATORS | DISCRIMINATORS
    assert set(rows) == set(nets)
    for name, (_, _, file, options, parameters) in rows.items():
        assert (README.parent / file.strip("`")).is_file(), name
        stated = re.sub(r" \([^)]*\)", "", options).split(", ")
        assert stated == [
            option for option in inspect.signature(nets[name]).parameters if option != "channels"
        ]
        count = sum(parameter.numel() for parameter in nets[name](channels=3).parameters())
        assert parameters.split()[0] == f"{count:,}", name
