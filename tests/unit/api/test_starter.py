"""The models that come with glioray: small, described, and good enough on a real case."""

from __future__ import annotations

from pathlib import Path

import pytest

import glioray
from glioray.engine.card import CARD_FILE
from glioray.engine.package import WEIGHTS_FILE
from glioray.engine.portable import package_hash, shipped_models

_MAX_BYTES = {"starter": 6_000_000, "starter-superres": 2_000_000}
_PATIENTS = {"starter": 10, "starter-superres": 8}


@pytest.fixture(autouse=True)
def _storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIORAY_STORAGE", str(tmp_path))


def test_each_is_small_and_its_card_describes_it():
    models = shipped_models()
    assert set(models) == set(_MAX_BYTES)
    for name, folder in models.items():
        assert (folder / WEIGHTS_FILE).stat().st_size <= _MAX_BYTES[name]
        card = (folder / CARD_FILE).read_text()
        for text in ("CC BY 4.0", "doi.org/10.7937/jc8x-9874", "Research use only", package_hash(folder)):
            assert text in card, (name, text)
        spec = glioray.load_model(name, device="cpu").spec
        assert len(spec.train_patients) == _PATIENTS[name]
        # Or an evaluation would take a renamed copy of its training cases for unseen ones.
        assert len(spec.train_images) >= _PATIENTS[name]


def test_a_name_with_a_hash_is_checked():
    digest = package_hash(shipped_models()["starter"])
    assert glioray.load_model(f"starter#sha256={digest}", device="cpu").task == "segmentation"
    with pytest.raises(glioray.GliorayError, match="was expected"):
        glioray.load_model(f"starter#sha256={'0' * 64}")


@pytest.mark.real
def test_a_real_case(real_data: Path):
    case = glioray.load_case(real_data / "brats2021" / "BraTS2021_01481")
    metrics = glioray.load_model("starter", device="cpu").evaluate(case)
    # It was trained on this case: less would be a fault of loading or prediction.
    assert metrics["wt"]["dice"] > 0.85
    assert metrics["tc"]["dice"] > 0.8
