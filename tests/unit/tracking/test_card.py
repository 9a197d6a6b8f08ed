"""The text that a promotion adds to a version's card."""

from __future__ import annotations

from glioray.engine.on_mlflow.card import comparison_text
from glioray.engine.promotion import Outcome


def test_a_promotion_names_the_scores_that_it_rests_on() -> None:
    answer = {
        "objective": {"candidate": 0.81, "champion": 0.75},
        "false_alarms": {"candidate": 0.0},
        "cases": [f"P{number}" for number in range(21)],
    }
    text = comparison_text(
        Outcome(wins=True, reason="0.81 is better than 0.75", answer=answer), "models:/unet/3"
    )
    assert "[models:/unet/3](" in text
    assert "models/unet/versions/3" in text
    assert "Promoted: 0.81 is better than 0.75." in text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["score", "this version", "champion before"] in cells
    assert ["objective", "0.81", "0.75"] in cells
    # A score that the champion has none of leaves its cell empty.
    assert ["false_alarms", "0", ""] in cells
    assert "On 21 cases: P0, P1" in text
    assert "P19, …" in text
    assert "P20" not in text


def test_a_first_champion_has_none_before() -> None:
    text = comparison_text(Outcome(wins=False, reason="a region is never predicted"), None)
    assert text == "Champion before: none. Not promoted: a region is never predicted."
