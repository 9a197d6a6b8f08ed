"""The precision that all runs of a search or a comparison have: results compare in one precision alone.

The first run that has timed decides. Runs that time at once ask one actor, which answers all of them alike. It keeps
its answers in the storage: for runs that start later, also by a further command, and for itself if its node is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from glioray.engine.precision import Agree
from glioray.errors import GliorayError
from glioray.storage import open_storage

PRECISION_FILE = "precision.json"
"""In the storage of a search or a comparison: the precision of each kind of work that has been decided."""


def agree_on_precision(uri: str, configs: Iterable[Any]) -> Agree | None:
    """The `agree` of a plan for runs of these configs; None where each has its precision by its settings.

    Args:
        uri: of the search or comparison.
        configs: of the runs.
    """
    if all(config.train.precision != "auto" for config in configs):
        return None
    decisions: Any = ray.remote(Decisions)
    return _Ask(decisions.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(uri))


class Decisions:
    """What has been decided, in a storage; one process alone may decide there."""

    def __init__(self, uri: str) -> None:
        self.storage = open_storage(uri)

    def decide(self, work: str, own: str | None) -> str | None:
        """The first precision that was given for some work; None if none has been.

        Args:
            work: as for `choose_precision`.
            own: what the run that asks would choose; None if it has not chosen.
        """
        is_there = self.storage.exists(PRECISION_FILE)
        decided = json.loads(self.storage.read(PRECISION_FILE)) if is_there else {}
        if own is not None and work not in decided:
            decided[work] = own
            self.storage.write(PRECISION_FILE, json.dumps(decided).encode())
        found: str | None = decided.get(work)
        return found


class _Ask:
    """Asks the actor, from any process."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __call__(self, work: str, own: str | None) -> str | None:
        try:
            found: str | None = ray.get(self.actor.decide.remote(work, own))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, GliorayError) else error from None
        return found
