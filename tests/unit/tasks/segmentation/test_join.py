"""Several packages as one: its answer, what it says of itself, and what cannot be joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pytest
import torch

from glioray.cases.load import Case
from glioray.engine.on_mlflow.export import save_export
from glioray.errors import ModelError, UsageError
from glioray.tasks.segmentation.package import ModelSpec, join_packages, read_package, write_package
from glioray.tasks.segmentation.predictor import Predictor

Specs = Callable[..., ModelSpec]
Writer = Callable[..., Path]


@pytest.fixture
def write(make_spec: Specs, tmp_path: Path) -> Writer:
    """Writes packages, each with weights of its own."""

    def write(seed: int, changes: dict[str, Any] | None = None, **settings: Any) -> Path:
        spec = replace(make_spec(**settings), **(changes or {}))
        torch.manual_seed(seed)
        net = spec.build()
        with torch.no_grad():
            net.head.weight *= 6
        write_package(tmp_path / str(seed), spec, net.state_dict())
        return tmp_path / str(seed)

    return write


@pytest.mark.parametrize("loss", ["region_dice_bce", "dice_ce"])
def test_its_probabilities_are_the_mean_of_its_members(write: Writer, case: Case, tmp_path: Path, loss: str):
    settings = {
        "loss.name": loss,
        "preprocess.planes": ["axial", "sagittal"],
        "postprocess.mirror": [False, True],
        "net.options.norm": "batch",
    }
    packages = [write(seed, **settings) for seed in range(3)]
    join_packages(packages, tmp_path / "joined")
    found = Predictor.load(tmp_path / "joined", "cpu").probs(case)
    singles = [Predictor.load(package, "cpu").probs(case) for package in packages]
    assert np.abs(singles[0] - singles[1]).max() > 0.1
    np.testing.assert_allclose(found, np.mean(singles, axis=0), atol=1e-6)


def test_an_ensemble_joins_member_by_member(write: Writer, case: Case, tmp_path: Path):
    packages = [write(seed) for seed in range(3)]
    join_packages(packages[:2], tmp_path / "two")
    assert join_packages([tmp_path / "two", packages[2]], tmp_path / "three").num_members == 3
    singles = [Predictor.load(package, "cpu").probs(case) for package in packages]
    found = Predictor.load(tmp_path / "three", "cpu").probs(case)
    np.testing.assert_allclose(found, np.mean(singles, axis=0), atol=1e-6)


def test_what_it_says_of_itself(write: Writer, tmp_path: Path):
    changes = [
        {
            "train_patients": ("a", "b"),
            "manifest_hash": "y",
            "spacing_mm": (1.0, 1.0, 3.0),
            "regions": ("wt",),
            "metrics": {"dice_wt": 1.0},
        },
        {
            "train_patients": ("b", "c"),
            "manifest_hash": "x",
            "spacing_mm": (1.0, 1.0, 2.0),
            "regions": ("wt",),
            "val_cases": {"c": {"wt": 1.0}},
        },
    ]
    thresholds = [[0.25, 0.5, 0.5], [0.75, 0.5, 0.25]]
    packages = [
        write(seed, changes[seed], **{"postprocess.thresholds": thresholds[seed], "train.seed": seed})
        for seed in (0, 1)
    ]
    spec = join_packages(packages, tmp_path / "joined")
    assert (spec.train_patients, spec.manifest_hash, spec.spacing_mm) == (
        ("a", "b", "c"),
        "x+y",
        (1.0, 1.0, 2.5),
    )
    assert (spec.metrics, spec.val_cases, spec.num_members, spec.regions) == ({}, {}, 2, ("wt",))
    assert spec.config.postprocess.thresholds == (0.5, 0.5, 0.375)
    found, net = read_package(tmp_path / "joined")
    assert found == spec
    assert not net.training


@pytest.mark.contracts
def test_plain_mlflow_loads_it(write: Writer, tmp_path: Path):
    join_packages([write(0), write(1)], tmp_path / "joined")
    _, net = read_package(tmp_path / "joined")
    axes = save_export(net, torch.zeros(1, 4, 32, 32), tmp_path / "export", run_id="r")
    assert axes == ("batch", "height", "width")
    images = torch.randn(3, 4, 48, 32)
    loaded = mlflow.pytorch.load_model(str(tmp_path / "export"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"net.options.width": 8},
            r"model 2 has net.options {'depth': 2, 'width': 8} but the first has ",
        ),
        (
            {"loss.name": "dice_ce"},
            "model 2 has out_channels 4 but the first has 3; join models that are alike",
        ),
        (
            {"preprocess.planes": ["coronal"]},
            r"model 2 has preprocess.planes \['coronal'\] but the first has \['axial'\]",
        ),
        ({"regions": ("wt",)}, r"model 2 has regions \('wt',\) but the first has \('wt', 'tc', 'et'\)"),
        ({"postprocess.min_et_ml": 0.5}, "model 2 has postprocess.min_et_ml 0.5 but the first has 0.0"),
    ],
    ids=str,
)
def test_models_that_differ_are_not_joined(
    write: Writer, tmp_path: Path, settings: dict[str, Any], sentence: str
):
    changes = {name: value for name, value in settings.items() if "." not in name}
    rest = {name: value for name, value in settings.items() if "." in name}
    with pytest.raises(ModelError, match=sentence):
        join_packages([write(0), write(1, changes, **rest)], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_one_alone_is_no_ensemble(write: Writer, tmp_path: Path):
    with pytest.raises(UsageError, match=r"an ensemble of 1 network\(s\); give at least two models"):
        join_packages([write(0)], tmp_path / "joined")


def test_members_weights_must_fit_their_number(write: Writer, tmp_path: Path):
    spec = join_packages([write(0), write(1)], tmp_path / "joined")
    (tmp_path / "joined" / "model.json").write_text(replace(spec, num_members=3).to_json())
    with pytest.raises(ModelError, match="do not fit network 'unet'"):
        read_package(tmp_path / "joined")


def test_an_ensemble_of_folded_networks(make_spec: Specs):
    spec = replace(make_spec(**{"net.options.stem_stride": 2}), num_members=2)
    assert spec.build().eval()(torch.zeros(1, 4, 32, 32)).shape == (1, 3, 32, 32)
