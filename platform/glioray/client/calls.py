"""What both clients do: requests, waits and new tries, as flows that know no HTTP client."""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from glioray.cases.casefiles import CaseFiles
from glioray.client.answers import Segmentation, SuperResolved
from glioray.client.folder import ENDINGS
from glioray.client.sources import Source, names_its_files, read_files, read_source
from glioray.engine.serving import Job
from glioray.errors import EndpointError, UsageError
from glioray.machine import bypass_proxies
from glioray.progress import log_progress
from glioray.storage import Storage, join_uri, open_storage

_log = logging.getLogger(__name__)

KEY_VARIABLE = "GLIORAY_API_KEY"
_CONNECT_S, _READY_S = 10.0, 1.0
_MAX_BREAKS, _BREAK_S = 5, 0.5
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXY_FAULTS = (500, 502, 503, 504)

T = TypeVar("T")
Step = httpx.Request | float | Callable[[], Any]
Flow = Generator[Step, Any, T]
"""Yields requests to send, seconds to wait, and work that may block; so that both clients share what they do. A request
gives its response, or the exception of a connection that broke."""


class Calls:
    """What both clients do, as flows; arguments as of `Client`."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retry_s: float) -> None:
        self.url = httpx.URL(url.rstrip("/"))
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise UsageError(f"the endpoint's address is '{url}'; expected http://HOST:PORT or https://HOST")
        self.timeout_s, self.retry_s = timeout_s, retry_s
        self.headers = {"Accept": "*/*", "User-Agent": "glioray"}
        key = (api_key or os.environ.get(KEY_VARIABLE) or "").strip()
        if key:
            if not key.isascii() or not key.isprintable():
                raise UsageError(f"the API key, by default {KEY_VARIABLE}, has characters that no key has")
            self.headers["Authorization"] = f"Bearer {key}"
            if self.url.scheme == "http" and self.url.host not in _LOOPBACK:
                _log.warning("the API key goes to %s unencrypted; use https", self.url.host)
        bypass_proxies()

    def get_models(self) -> Flow[list[dict[str, Any]]]:
        response = yield from self.exchange("GET", "/v1/models")
        models: list[dict[str, Any]] = response.json()["models"]
        return models

    def get_ready(self, wait_s: float) -> Flow[bool]:
        for last in (*(False for _ in range(int(wait_s / _READY_S))), True):
            response = yield self._request("GET", "/readyz")
            if isinstance(response, httpx.Response):
                if response.is_success:
                    return True
                if response.status_code not in _PROXY_FAULTS:
                    raise self._refusal(response)
            if not last:
                yield _READY_S
        return False

    def segment(
        self, source: Source, output: str, fields: Mapping[str, Any], case_id: str | None
    ) -> Flow[Segmentation]:
        wanted = None if names_its_files(source) else (yield from self.get_modalities("segmentation"))
        parts = yield partial(read_source, source, case_id, wanted)
        response = yield from self.exchange("POST", "/v1/segment", parts, {"output": output, **fields})
        return Segmentation.from_response(response)

    def superresolve(
        self, source: Source, fields: Mapping[str, Any], case_id: str | None
    ) -> Flow[SuperResolved]:
        wanted = None if names_its_files(source) else (yield from self.get_modalities("super-resolution"))
        parts = yield partial(read_source, source, case_id, wanted)
        response = yield from self.exchange("POST", "/v1/superresolve", parts, fields)
        return SuperResolved.from_response(response)

    def segment_into(
        self,
        storage: Storage,
        files: CaseFiles,
        out: str,
        output: str,
        fields: Mapping[str, Any],
        wanted: Sequence[str] | None,
    ) -> Flow[str]:
        parts = yield partial(read_files, storage, files, wanted)
        response = yield from self.exchange("POST", "/v1/segment", parts, {"output": output, **fields})
        key = f"{files.case_id}_{ENDINGS[output]}"
        target = open_storage(out)
        yield partial(target.write, key, response.content)
        return join_uri(target.uri, key)

    def start_job(self, fields: Mapping[str, Any]) -> Flow[Job]:
        return self._read_job(
            (yield from self.exchange("POST", "/v1/jobs", json=fields, is_repeatable=False))
        )

    def get_job(self, job_id: str) -> Flow[Job]:
        return self._read_job((yield from self.exchange("GET", _job_path(job_id))))

    def cancel_job(self, job_id: str) -> Flow[Job]:
        return self._read_job((yield from self.exchange("DELETE", _job_path(job_id))))

    def wait_for_job(
        self, job_id: str, poll_s: float, on_progress: Callable[[Job], object] | None
    ) -> Flow[Job]:
        if poll_s <= 0:
            raise UsageError(f"poll_s is {poll_s:g}; expected seconds above 0")
        known: Job | None = None
        while True:
            job = yield from self.get_job(job_id)
            if known is None or _progress_of(job) != _progress_of(known):
                known = job
                _log_job(job)
                if on_progress is not None:
                    on_progress(job)
            if job.state == "done":
                return job
            if job.state == "failed":
                raise EndpointError(f"the job {job.id} failed: {job.error}")
            if job.state == "cancelled":
                raise EndpointError(
                    f"the job {job.id} was cancelled; {job.num_done} of its cases have their mask"
                )
            yield float(poll_s)

    def get_modalities(self, task: str) -> Flow[tuple[str, ...] | None]:
        """The modalities that a task's model takes; None where it takes each by itself, or where none is served."""
        models = yield from self.get_models()
        for model in models:
            if model.get("task") == task and model.get("channels") != "each":
                return tuple(model["modalities"])
        return None

    def exchange(
        self,
        method: str,
        path: str,
        files: Mapping[str, bytes] | None = None,
        fields: Mapping[str, Any] | None = None,
        *,
        json: Mapping[str, Any] | None = None,
        is_repeatable: bool = True,
    ) -> Flow[httpx.Response]:
        """The response to a request; tries again where the endpoint says when, and where a connection broke.

        A request that is not repeatable is not sent again where the endpoint may have carried it out.

        Raises:
            EndpointError: the request was refused, or there is no answer after `retry_s` or several broken connections.
        """
        waited_s, num_breaks = 0.0, 0
        while True:
            outcome = yield self._request(method, path, files, fields, json)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            error, wait_s, is_break = self._judge(outcome)
            if not is_repeatable and _may_be_carried_out(outcome):
                found = f"{error.detail.partition(';')[0]}, but may have carried out {method} {path}"
                raise EndpointError(
                    f"{found}; look for what it made before you send it again", error.status, error.request_id
                )
            if wait_s is None and is_break and num_breaks < _MAX_BREAKS:
                wait_s = _BREAK_S * 2**num_breaks
                num_breaks += 1
            if wait_s is None or waited_s + wait_s > self.retry_s:
                raise error
            _log.info("%s; trying again in %.3g s", error, wait_s)
            # Those who were refused together do not come back together.
            yield wait_s * random.uniform(1, 1.2)
            waited_s += wait_s

    def _judge(
        self, outcome: httpx.Response | httpx.TransportError
    ) -> tuple[EndpointError, float | None, bool]:
        """What went wrong, the seconds to wait that the endpoint states, and whether a connection broke."""
        if isinstance(outcome, httpx.Response):
            stated = outcome.headers.get("Retry-After") if outcome.status_code in (429, 503) else None
            # A proxy before the endpoint, or before a process that died, has no sentence of the endpoint.
            is_break = outcome.status_code in _PROXY_FAULTS and _detail(outcome) is None
            return self._refusal(outcome), stated and parse_retry_after(stated), is_break
        if isinstance(outcome, httpx.TimeoutException) and not isinstance(outcome, httpx.ConnectTimeout):
            found = f"{self.url} gave no answer for {self.timeout_s:g} s"
            return EndpointError(f"{found}; try again later"), None, False
        reason = str(outcome) or type(outcome).__name__
        advice = "check the address and the endpoint"
        return EndpointError(f"{self.url} does not answer ({reason}); {advice}"), None, True

    def _read_job(self, response: httpx.Response) -> Job:
        try:
            return Job.model_validate_json(response.content)
        except ValidationError as error:
            raise self._refusal(response) from error

    def _refusal(self, response: httpx.Response) -> EndpointError:
        other = (
            f"{self.url} answered {response.status_code} {response.reason_phrase}; expected glioray's endpoint, so "
            "check the address"
        )
        detail = _detail(response) or other
        return EndpointError(detail, response.status_code, response.headers.get("X-Request-Id"))

    def _request(
        self,
        method: str,
        path: str,
        files: Mapping[str, bytes] | None = None,
        fields: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
    ) -> httpx.Request:
        # Files go under the names of their fields: their own may name a patient.
        sent = {name: (name, data, "application/octet-stream") for name, data in (files or {}).items()}
        return httpx.Request(
            method,
            f"{self.url}{path}",
            headers=self.headers,
            files=sent or None,
            data=dict(fields or {}) or None,
            json=json,
            extensions={"timeout": httpx.Timeout(self.timeout_s, connect=_CONNECT_S).as_dict()},
        )


def _job_path(job_id: str) -> str:
    if not re.fullmatch(r"[\w-]+", job_id, re.ASCII):
        raise UsageError(f"job_id is '{job_id[:100]}'; expected the id of a job, as start_job returns it")
    return f"/v1/jobs/{job_id}"


def _progress_of(job: Job) -> tuple[object, ...]:
    return job.state, job.num_cases, job.num_done, len(job.failed)


def _log_job(job: Job) -> None:
    """Log how far a job is; times are the endpoint's, which may have begun it long ago."""
    if job.state in ("failed", "cancelled"):
        return
    # Files that belong to no case count as failed too.
    done = min((job.num_done + len(job.failed)) / job.num_cases, 0.99) if job.num_cases else 0.0
    done = 1.0 if job.state == "done" else done
    began_s = time.monotonic() - (job.updated_at - job.created_at).total_seconds()
    log_progress(_log, f"job {job.id}", done, began_s, f"{job.num_done} masks, {len(job.failed)} failed")


def _may_be_carried_out(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether the endpoint may have begun what was asked for, though it did not say so."""
    if isinstance(outcome, httpx.Response):
        return _detail(outcome) is None
    return not isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout)


def _detail(response: httpx.Response) -> str | None:
    """The endpoint's own sentence in a refusal."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return None
    return detail if isinstance(detail, str) else None


def parse_retry_after(text: str) -> float:
    """The seconds of a `Retry-After` header, which may be a date; 5 where it is neither."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 5.0
