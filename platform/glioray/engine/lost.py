"""Cases that a run goes without, because they can no longer be decoded when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glioray.errors import CaseError, DataError

if TYPE_CHECKING:
    from glioray.engine.run import RunPlan

_NUM_NAMED = 5


def check_lost(plan: RunPlan, lost: Mapping[str, CaseError]) -> str:
    """Check that a run may go without these cases; returns one line on them, or "" where it needs none of them.

    Args:
        plan: of the run; `train.max_lost_cases` is the share of its cases that may be lost, at least one unless it is 0.
        lost: case id -> why it cannot be decoded.

    Raises:
        DataError: too many are lost, or all that the run trains or validates on.
    """
    train, val = ({entry.case_id for entry in part} for part in plan.task.cases(plan))
    ids = sorted((train | val) & set(lost))
    if not ids:
        return ""
    num_cases, share = len(train | val), plan.config.train.max_lost_cases
    num_allowed = max(1, int(share * num_cases)) if share else 0
    found = f"{len(ids)} of {num_cases} cases can no longer be decoded"
    reasons = "; ".join(str(lost[case_id]) for case_id in ids[:_NUM_NAMED])
    reasons += f"; and {len(ids) - _NUM_NAMED} more" if len(ids) > _NUM_NAMED else ""
    for name, part in (("train", train), ("validate", val)):
        if part and part <= set(lost):
            raise DataError(f"{found}, all that the run would {name} on: {reasons}")
    if len(ids) > num_allowed:
        raise DataError(
            f"{found}, and train.max_lost_cases is {share:g}, which allows {num_allowed}; raise it, or put the data right: "
            f"{reasons}"
        )
    num_val = len(val & set(lost))
    judged = (
        f", so that the run validates on {len(val) - num_val} cases rather than {len(val)}" if num_val else ""
    )
    return f"{found}{judged}: {reasons}"
