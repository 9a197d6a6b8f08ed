"""The panel: apart, spread over patients and brains, the same each time, and what it says where it cannot be."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from glioray.config import PreprocessConfig
from glioray.errors import DataError
from glioray.slices.preprocess import SliceStack
from glioray.tasks.superres.config import CollapseConfig, DegradeConfig, GanConfig
from glioray.tasks.superres.panel import Panel, pick_panel

SIZE = 48


def config_of(
    *, channels: str = "each", modalities: tuple[str, ...] = ("t1", "flair"), **rules: Any
) -> GanConfig:
    return GanConfig(
        recipe="test",
        preprocess=PreprocessConfig(normalize="unit", size=(SIZE, SIZE), modalities=modalities),
        degrade=DegradeConfig(hr_size=32, lr_size=8),
        channels=channels,
        collapse=CollapseConfig(**{"num_slices": 16, "min_slices": 8, "apart_mm": 5.0, **rules}),
    )


def stack_of(case_id: str, *, num_slices: int = 40, gap_mm: float = 2.0, plane: str = "axial") -> SliceStack:
    """A ball: its first and last slices hold next to nothing; each slice has a value of its own."""
    place = np.arange(num_slices)
    radius = 16 * np.sqrt(np.maximum(0, 1 - ((place - num_slices / 2) / (num_slices / 2)) ** 2))
    rows = np.arange(SIZE) - SIZE / 2
    inside = np.hypot(rows[:, None], rows)[None] < radius[:, None, None]
    values = inside * (0.1 + 0.02 * place[:, None, None])
    spacing = [1.0, 1.0, 1.0]
    spacing[{"axial": 2, "coronal": 1, "sagittal": 0}[plane]] = gap_mm
    return SliceStack(
        case_id=case_id,
        plane=plane,
        images=np.stack([values, values / 2], 1).astype(np.float16),
        mask=None,
        origin=(7, 0, 0),
        shape=(SIZE, SIZE, num_slices),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        label_voxels=(0,) * 5,
    )


def pick(stacks: list[SliceStack], config: GanConfig, patients: Mapping[str, str] | None = None) -> Panel:
    names = patients or {stack.case_id: f"patient of {stack.case_id}" for stack in stacks}
    return pick_panel([(stack,) for stack in stacks], names, config)


def places_of(panel: Panel) -> dict[str, list[int]]:
    """Case -> numbers of its slices in the file."""
    found: dict[str, list[int]] = {}
    for title in panel.titles:
        words = title.split()
        found.setdefault(words[0], []).append(int(words[-1]))
    return {name: sorted(set(values)) for name, values in found.items()}


def test_each_modality_of_a_slice_is_an_image(caplog: pytest.LogCaptureFixture):
    stacks = [stack_of(f"case{number}") for number in range(3)]
    panel = pick(stacks, config_of())
    assert (len(panel), panel.hr.shape, panel.hr.dtype) == (16, (16, 1, 32, 32), torch.float32)
    assert len(set(panel.titles)) == 16
    assert panel.titles[0].split()[1:3] == ["t1", "axial"]
    assert panel.titles[1].split()[1:3] == ["flair", "axial"]
    torch.testing.assert_close(panel.hr[1], panel.hr[0] / 2, atol=1e-3, rtol=0)
    for title, patient, image in zip(panel.titles, panel.patients, panel.hr, strict=True):
        assert patient == f"patient of {title.split()[0]}"
        value = 0.1 + 0.02 * (int(title.split()[-1]) - 7)
        assert image.max().item() == pytest.approx(value / (1 + ("flair" in title)), abs=1e-3)
    assert max(map(len, places_of(panel).values())) == 3
    assert not caplog.records
    together = pick(stacks, config_of(channels="joint", num_slices=8))
    assert together.hr.shape == (8, 2, 32, 32)
    assert places_of(together) == places_of(panel)


@pytest.mark.parametrize(("plane", "gap_mm"), [("axial", 2.0), ("coronal", 1.2), ("sagittal", 6.0)])
def test_slices_are_apart_hold_brain_and_are_spread(plane: str, gap_mm: float):
    panel = pick([stack_of(f"case{k}", plane=plane, gap_mm=gap_mm) for k in range(2)], config_of())
    assert panel.hr.gt(0).float().mean((1, 2, 3)).min() >= 0.1
    for places in places_of(panel).values():
        assert len(places) == 4
        assert min(np.diff(places)) * gap_mm >= 5.0
        assert max(places) - min(places) >= 20


def test_it_depends_on_the_cases_alone():
    stacks = [stack_of(f"case{number}") for number in range(5)]
    panel, turned = pick(stacks, config_of()), pick(stacks[::-1], config_of())
    assert panel.titles == turned.titles
    torch.testing.assert_close(panel.hr, turned.hr, rtol=0, atol=0)


def test_many_patients_give_one_slice_each_at_various_heights():
    panel = pick([stack_of(f"case{number:02d}") for number in range(40)], config_of(num_slices=32))
    places = places_of(panel)
    assert len(places) == 16
    assert set(map(len, places.values())) == {1}
    heights = [value[0] for value in places.values()]
    assert max(heights) - min(heights) >= 20
    assert places.keys() != {f"case{number:02d}" for number in range(16)}


def test_one_case_of_a_patient_and_its_first_plane_count():
    stacks = [stack_of("early"), stack_of("late"), stack_of("other")]
    patients = {"early": "A", "late": "A", "other": "B"}
    panel = pick(stacks, config_of(), patients)
    assert Counter(panel.patients) == {"A": 8, "B": 8}
    assert places_of(panel).keys() == {"early", "other"}
    both = [(stack, stack_of(stack.case_id, plane="coronal")) for stack in stacks]
    assert pick_panel(both, patients, config_of()).titles == panel.titles


def test_too_few_patients_give_more_slices_each_but_none_that_are_near(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        panel = pick([stack_of("only")], config_of(per_patient=4))
    (places,) = places_of(panel).values()
    assert len(places) == 8
    assert min(np.diff(places)) * 2 >= 5
    assert "up to 8 slices of a patient, not 4" in caplog.text


def test_too_few_images_are_refused_in_one_sentence():
    with pytest.raises(
        DataError, match=r"of 1 patient\(s\) give 2 images .* expected 8, so validate on more cases"
    ):
        pick([stack_of("only", num_slices=4)], config_of())
    with pytest.raises(DataError, match=r"of 0 patient\(s\) give 0 images"):
        pick([], config_of())


def test_no_more_than_asked_for_where_modalities_do_not_divide_it():
    stack = stack_of("only")
    three = dataclasses.replace(stack, images=np.concatenate([stack.images, stack.images[:, :1]], 1))
    panel = pick([three], config_of(modalities=("t1", "t1c", "flair"), per_patient=16))
    assert len(panel) == len(panel.titles) == len(panel.patients) == 16
