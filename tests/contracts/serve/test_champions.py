"""The versions that all replicas serve are chosen in one place; requests outlive a replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import HTTPException
from ray.exceptions import ActorDiedError, RayTaskError
from serve import champions as champions_module
from serve.champions import Champions
from serve.deployments import RemoteStatus, make_forward
from serve.forward import WholeAnswer, WholeRequest
from serve.schemas import Settings
from serve.status import ModelState

from glioray.errors import GliorayError, ModelError, StorageError

ALIAS, OTHER = "models:/net@champion", "models:/sharp@champion"
SETTINGS = Settings(model=ALIAS, superres=OTHER, poll_s=0.01)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | GliorayError]:
    """URI -> the version that it stands for, or what the registry answers."""
    found: dict[str, str | GliorayError] = {ALIAS: "models:/net/1", OTHER: "models:/sharp/1"}

    def resolve(uri: str, *, tracking_uri: str | None = None) -> str:
        answer = found[uri]
        if isinstance(answer, GliorayError):
            raise answer
        return answer

    monkeypatch.setattr(champions_module, "resolve_version", resolve)
    return found


def test_a_question_waits_for_another_version(registry: dict[str, Any]) -> None:
    champions = Champions(SETTINGS)

    async def follow() -> list[str | None]:
        first = await champions.choose("segmentation")
        waiting = asyncio.create_task(champions.choose("segmentation", first.version))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        registry[ALIAS] = "models:/net/2"
        return [first.version, (await waiting).version, (await champions.choose("superres")).version]

    assert asyncio.run(follow()) == ["models:/net/1", "models:/net/2", "models:/sharp/1"]


def test_an_outage_changes_nothing_and_a_missing_alias_withdraws(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champions_module, "WAIT_S", 0.3)
    champions = Champions(SETTINGS)
    assert asyncio.run(champions.choose("segmentation")).version == "models:/net/1"
    registry[ALIAS] = StorageError("the server does not answer")
    assert asyncio.run(champions.choose("segmentation", "models:/net/1")).version == "models:/net/1"
    registry[ALIAS] = ModelError("there is no such alias")
    gone = asyncio.run(champions.choose("segmentation", "models:/net/1"))
    assert gone.version is None
    assert "no such alias" in str(gone.error)


def test_a_serve_config_moves_all_replicas_to_a_version(registry: dict[str, Any]) -> None:
    champions = Champions(Settings(model=ALIAS, superres=OTHER, poll_s=3600))
    assert asyncio.run(champions.choose("segmentation")).version == "models:/net/1"
    registry["models:/net/7"] = "models:/net/7"
    champions.reconfigure({"models": {"segmentation": "models:/net/7"}})
    assert asyncio.run(champions.choose("segmentation", "models:/net/1")).version == "models:/net/7"
    champions.reconfigure({})
    assert asyncio.run(champions.choose("segmentation", "models:/net/7")).version == "models:/net/1"
    with pytest.raises(ValueError, match="models of other; expected some of segmentation, superres"):
        champions.reconfigure({"models": {"other": "models:/net/7"}})


def test_the_state_is_the_best_of_the_replicas(
    registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    champions = Champions(SETTINGS)

    def state() -> ModelState:
        return asyncio.run(champions.states())["segmentation"]

    asyncio.run(champions.choose("segmentation"))
    assert state().state == "loading"
    ready, broken = (
        ModelState("ready", "serving models:/net/1", {}),
        ModelState("waiting", "cannot be loaded"),
    )
    asyncio.run(champions.report("segmentation", "a", broken))
    assert state() == broken
    asyncio.run(champions.report("segmentation", "b", ready))
    asyncio.run(champions.report("segmentation", "a", broken))
    assert state() == ready
    # Long after the last replica: scaled to nothing, so the next request starts one.
    later = time.monotonic() + 1000
    asyncio.run(champions.report("segmentation", "b", ready))
    monkeypatch.setattr(champions_module.time, "monotonic", lambda: later)
    assert state() == ready
    # Replicas that are gone are forgotten once another one reports.
    asyncio.run(champions.report("segmentation", "c", broken))
    assert state() == broken
    assert champions.reports["segmentation"].keys() == {"c"}


class _Handle:
    """A deployment handle whose calls take the next of some answers; exceptions are raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.forward = self.states = self

    async def remote(self, *_: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


REQUEST = WholeRequest("POST", "/v1/segment", b"", [], b"")


@pytest.mark.parametrize("deaths", [0, 2])
def test_a_request_outlives_replicas_that_die(deaths: int) -> None:
    handle: Any = _Handle(*[ActorDiedError()] * deaths, answer := WholeAnswer(200, [], b"mask"))
    assert asyncio.run(make_forward(handle, 1.0)(REQUEST)) is answer


def test_a_request_that_kills_every_replica_is_refused() -> None:
    handle: Any = _Handle(*[ActorDiedError()] * 9)
    with pytest.raises(HTTPException, match="the replicas that worked on the case died") as refusal:
        asyncio.run(make_forward(handle, 1.0)(REQUEST))
    assert refusal.value.status_code == 503
    assert len(handle.answers) == 6


def test_a_fault_of_the_code_is_not_tried_again() -> None:
    fault = RayTaskError("forward", "a traceback", ValueError("a fault"))
    with pytest.raises(RayTaskError):
        asyncio.run(make_forward(_Handle(fault, WholeAnswer(200, [], b"")), 1.0)(REQUEST))  # type: ignore[arg-type]


def test_a_replica_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[asyncio.Future[WholeAnswer]] = []

    class Never:
        @property
        def forward(self) -> Never:
            return self

        def remote(self, _: WholeRequest) -> asyncio.Future[WholeAnswer]:
            asked.append(asyncio.get_running_loop().create_future())
            return asked[-1]

    monkeypatch.setattr("serve.deployments._SLACK_S", 0.1)
    with pytest.raises(HTTPException, match="no replica had time for the case"):
        asyncio.run(make_forward(Never(), 0.0)(REQUEST))  # type: ignore[arg-type]
    assert [answer.cancelled() for answer in asked] == [True]


def test_the_last_states_hold_while_their_process_starts_again() -> None:
    states = {"segmentation": ModelState("ready", "serving models:/net/1")}

    def status(*answers: Any) -> Callable[[], Any]:
        made = RemoteStatus(_Handle(*answers))  # type: ignore[arg-type]

        def ask() -> Any:
            made.when = -1000.0
            return asyncio.run(made.states())  # type: ignore[arg-type]

        return ask

    ask = status(states, ActorDiedError())
    assert ask() == ask() == states
    with pytest.raises(HTTPException, match="the endpoint is starting"):
        status(ActorDiedError())()
