"""The one place that decides which versions are served: it follows the aliases, and every replica asks it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glioray.engine.on_mlflow.registry import resolve_version
from glioray.errors import GliorayError, ModelError
from glioray.progress import log_to_stderr
from serve.schemas import Settings
from serve.status import ModelState

_log = logging.getLogger("glioray.serve")

WAIT_S = 10.0
"""How long a question waits for a change, and about how often a replica reports."""
_STEP_S = 0.05
_REPORTS_WAIT = 3
"""How many times `WAIT_S` a replica is taken to live after its report."""


@dataclass(frozen=True)
class Choice:
    """The version of a task's model that is to be served.

    Attributes:
        version: as models:/NAME/VERSION; None where there is none.
        error: why there is none.
    """

    version: str | None
    error: GliorayError | None = None


class Champions:
    """Resolves the URI of every task's model: each `poll_s` seconds, and at once when a URI changes.

    An outage of the registry changes no choice. `user_config` of a Serve config may hold {"models": {task: URI}}: other
    URIs than the settings', followed without a restart of anything.
    """

    def __init__(self, settings: Settings) -> None:
        log_to_stderr()
        self.settings = settings
        self.uris = settings.uris
        self.choices: dict[str, Choice] = {}
        self.reports: dict[str, dict[str, tuple[float, ModelState]]] = {task: {} for task in self.uris}
        self._poke = threading.Event()
        threading.Thread(target=self._run, name="champions", daemon=True).start()

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Follow other URIs; Serve calls this with the `user_config`."""
        models: dict[str, str] = dict(config.get("models") or {})
        unknown = sorted(set(models) - set(self.settings.uris))
        if unknown:
            raise ValueError(
                f"user_config names models of {', '.join(unknown)}; expected some of "
                f"{', '.join(self.settings.uris)}"
            )
        self.uris = {**self.settings.uris, **models}
        self._poke.set()

    async def choose(self, task: str, known: str | None = None) -> Choice:
        """The choice for a task, once there is one; with `known` as soon as it is another version, or after `WAIT_S`."""
        end = time.monotonic() + WAIT_S
        while True:
            choice = self.choices.get(task)
            is_news = choice is not None and (known is None or choice.version != known)
            if is_news or (choice is not None and time.monotonic() >= end):
                assert choice is not None
                return choice
            await asyncio.sleep(_STEP_S)

    async def report(self, task: str, replica: str, state: ModelState) -> None:
        """Take the state of a replica's model."""
        now, known = time.monotonic(), self.reports[task]
        self.reports[task] = {
            name: report for name, report in known.items() if now - report[0] < _REPORTS_WAIT * WAIT_S
        } | {replica: (now, state)}

    async def follow(self) -> None:
        """Resolve every URI now."""
        self._poke.set()

    async def states(self) -> dict[str, ModelState]:
        """The state of every task's model: the best of its replicas'; without any, it is loaded when it is asked for."""
        return {task: self._state(task) for task in self.uris}

    def _state(self, task: str) -> ModelState:
        reports = sorted(self.reports[task].values(), key=lambda report: -report[0])
        alive = [state for when, state in reports if time.monotonic() - when < _REPORTS_WAIT * WAIT_S]
        ready = [state for state in alive if state.state == "ready"]
        if ready or alive:
            return (ready or alive)[0]
        choice = self.choices.get(task)
        if choice is not None and choice.version is not None and reports and reports[0][1].state == "ready":
            # Scaled to nothing: the next request starts a replica.
            return reports[0][1]
        return ModelState("loading", "the model is being loaded; try again in some seconds")

    def _run(self) -> None:
        while True:
            for task, uri in self.uris.items():
                before = self.choices.get(task)
                choice = self._resolve(uri, before)
                if before is None or choice.version != before.version:
                    _log.info("%s: %s", task, choice.version or choice.error)
                self.choices[task] = choice
            self._poke.wait(self.settings.poll_s)
            self._poke.clear()

    def _resolve(self, uri: str, before: Choice | None) -> Choice:
        try:
            return Choice(resolve_version(uri, tracking_uri=self.settings.tracking_uri))
        except ModelError as error:
            return Choice(None, error)
        except GliorayError as error:
            return Choice(None, error) if before is None or before.version is None else before
        except Exception:  # the thread must survive unexpected errors
            _log.exception("looking for %s failed", uri)
            return before or Choice(None, ModelError(f"looking for {uri} failed"))
