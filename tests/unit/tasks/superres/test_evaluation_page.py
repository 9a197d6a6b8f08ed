"""The page of a super-resolution model's evaluation."""

from __future__ import annotations

from typing import Any

from glioray.tasks.superres.evaluation import use_answer
from glioray.tasks.superres.evaluation_page import superres_markdown

PATIENTS = {"a1": "a", "b1": "b"}
USE = {
    "a1": {
        "wt": {"dice_sr": 0.8, "dice_bicubic": 0.6, "dice_hr": 0.9, "gain": 0.2},
        "et": {"dice_sr": 0.6, "dice_bicubic": 0.4, "dice_hr": 0.7, "gain": 0.2},
    },
    "b1": {"wt": {"dice_sr": 0.6, "dice_bicubic": 0.6, "dice_hr": 0.7, "gain": 0.0}},
}


def _images(quality: float) -> Any:
    figures = {"quality": quality, "hfen": 0.5, "bicubic_hfen": 0.6, "psnr": 30.0, "gain_psnr": 1.0}
    return {"t1": figures, "mean": figures}


def test_the_page_says_what_was_judged_and_by_what():
    page = superres_markdown(
        {"a1": _images(0.1), "b1": _images(0.3)},
        USE,
        PATIENTS,
        title="models:/sr/1 on unseen cases",
        judge="hfen",
        segmenter="models:/seg/2",
        recovered=0.5,
        failed={"c1": "has no\nbrain"},
        pictures={"a1": "pictures/a1.png"},
    )
    assert page.startswith("# models:/sr/1 on unseen cases\n")
    assert "Not among them: c1 (has no brain)." in page
    assert "With so few patients the intervals are too narrow" in page
    assert "| modality | cases | quality | HFEN | of bicubic | PSNR, dB | over bicubic, dB |" in page
    assert "| t1 | 2 | 0.200 [0.100, 0.300] | 0.500 [0.500, 0.500] |" in page
    assert "d by hfen" in page
    assert "Dice of the segmenter models:/seg/2 on" in page
    assert "50 % was recovered" in page
    assert "| wt | 2 | 0.700 [0.600, 0.800] |" in page
    assert "| et | 1 | 0.600 |" in page
    assert "![a1](pictures/a1.png)" in page


def test_without_a_segmenter_the_page_says_so():
    page = superres_markdown({"a1": _images(0.1)}, {}, PATIENTS, title="m", judge="hfen")
    assert "No segmenter labelled" in page
    assert "## Pictures" not in page


def test_dice_by_use_over_cases():
    found = use_answer(USE, PATIENTS)
    assert found["regions"]["wt"]["gain"] == 0.1
    assert abs(found["dice_sr"] - 0.65) < 1e-9
    assert abs(found["recovered"] - 0.15 / 0.25) < 1e-9
    assert found["intervals"]["mean"]["gain"] == (0.0, 0.2)
    assert "et" not in found["intervals"]
    assert use_answer({}, PATIENTS) == {}
