"""Whether a model may take the champion's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glioray.cases.manifest import Manifest
from glioray.engine.task import ModelPackage
from glioray.errors import ModelError, UsageError

CANDIDATE, CHAMPION = "candidate", "champion"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a comparison of a candidate to the champion.

    Attributes:
        wins: whether the candidate may become champion.
        reason: why, or why not.
        answer: the metrics and cases that it rests on, for the job's answer.
    """

    wins: bool
    reason: str
    answer: dict[str, Any] = field(default_factory=dict)


def compare_to_champion(packages: Mapping[str, ModelPackage], manifest: Manifest | None) -> Outcome:
    """Compare a candidate to the champion, as their task does it.

    Args:
        packages: of the "candidate" and, where there is one, of the "champion".
        manifest: evaluate both now, on those of these cases that neither was trained on; None to compare the metrics
            of their last validations.

    Raises:
        ModelError: the candidate must not be promoted, or the two belong to different tasks.
        UsageError: they cannot be compared as they are.
        DataError: too few cases are left to evaluate on.
    """
    names = {role: package.task.name for role, package in packages.items()}
    if len(set(names.values())) > 1:
        raise ModelError(
            f"the candidate belongs to the task {names[CANDIDATE]}, the champion to {names[CHAMPION]}; register each "
            "kind under a --name of its own"
        )
    return packages[CANDIDATE].task.compare_to_champion(packages, manifest)


def compare_scores(name: str, scores: Mapping[str, float | None], answer: dict[str, Any]) -> Outcome:
    """The candidate wins where its score is larger, or where there is no champion.

    Args:
        name: of the score, in a sentence.
        scores: by role; None only for a candidate without a champion.
        answer: of the outcome; its "cases", where it has any, are counted in the reason.
    """
    if CHAMPION not in scores:
        return Outcome(wins=True, reason="there was no champion", answer=answer)
    own, other = scores[CANDIDATE], scores[CHAMPION]
    assert own is not None
    assert other is not None
    where = f" on {len(answer['cases'])} cases" if "cases" in answer else ""
    if own > other:
        return Outcome(wins=True, reason=f"{name} {own:.4f} beats {other:.4f}{where}", answer=answer)
    reason = f"{name} {own:.4f} does not beat {other:.4f}; the champion stays"
    return Outcome(wins=False, reason=reason, answer=answer)


def check_same_cases(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare models that were evaluated on different cases.

    Args:
        results: by role and case id.

    Raises:
        UsageError: their cases differ, or the candidate has none.
    """
    if CHAMPION not in results:
        return
    cases = {role: sorted(found) for role, found in results.items()}
    if not cases[CANDIDATE] or cases[CANDIDATE] != cases[CHAMPION]:
        raise UsageError(
            f"the candidate was evaluated on {len(cases[CANDIDATE])} cases and the champion on {len(cases[CHAMPION])} "
            "that are not the same; give --data to evaluate both on the same cases"
        )
