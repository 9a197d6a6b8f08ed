"""A model that is served, kept up to date with what its URI stands for."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Literal, TypeVar

from glioray.engine.on_mlflow.registry import fetch_package, resolve_version
from glioray.engine.serving import Served
from glioray.errors import GliorayError, ModelError, StorageError

_log = logging.getLogger("glioray.serve")

M = TypeVar("M")


class ModelWatch(Generic[M]):
    """Holds the model of a URI, and replaces it when the URI comes to stand for another version.

    `served` is only ever replaced as a whole: who has taken it goes on with what he took. Where the registry
    does not answer, or a new version cannot be loaded, the old one stays; where the registry answers that the
    alias is gone, nothing is served any more: that is how a model is withdrawn.

    Attributes:
        load: makes the model of a package's folder, for a device.
        served: the model, or None.
        reason: why there is none, in a sentence fit for clients.
    """

    def __init__(
        self,
        uri: str,
        load: Callable[[Path, str | None], M],
        *,
        poll_s: float,
        tracking_uri: str | None = None,
        device: str | None = None,
    ) -> None:
        self.uri, self.load = uri, load
        self.poll_s, self.tracking_uri, self.device = poll_s, tracking_uri, device
        self.served: Served[M] | None = None
        self.reason = "the model is being loaded; try again in some seconds"
        self._has_looked = False
        self._said = ""
        self._stop = threading.Event()

    @property
    def state(self) -> Literal["ready", "loading", "waiting"]:
        """ "loading" until the first look has ended."""
        if self.served is not None:
            return "ready"
        return "waiting" if self._has_looked else "loading"

    @property
    def status(self) -> str:
        """What is served, or why nothing is, in a sentence fit for clients."""
        served = self.served
        return self.reason if served is None else f"serving {served.version}"

    def start(self) -> None:
        """Look now, and then every `poll_s` seconds, on a thread of its own."""
        threading.Thread(target=self._run, name="model-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no further."""
        self._stop.set()

    def refresh(self) -> None:
        """Look once: resolve the URI, and load what it stands for unless that is loaded already."""
        version = self.uri
        try:
            version = resolve_version(self.uri, tracking_uri=self.tracking_uri)
            if self.served is None or self.served.version != version:
                self.served = self._load(version)
            self._say(f"serving {version}")
        except StorageError as error:
            self.reason = "no model is served, because the registry does not answer; try again later"
            self._say(f"{error}; {self._what_stays()}")
        except GliorayError as error:
            if version != self.uri:
                self.reason = (
                    f"no model is served, because {version} cannot be loaded; promote another version"
                )
            else:
                self.reason = f"no model is served, because there is no '{self.uri}'; promote a version of it"
                if isinstance(error, ModelError):
                    self.served = None
            self._say(f"{error}; {self._what_stays()}")
        finally:
            self._has_looked = True

    def _load(self, version: str) -> Served[M]:
        with tempfile.TemporaryDirectory() as folder:
            package = fetch_package(version, Path(folder), tracking_uri=self.tracking_uri)
            return Served(version, self.load(package, self.device))

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
            except Exception:  # the thread must outlive what nobody foresaw
                _log.exception("looking for %s failed; trying again in %g s", self.uri, self.poll_s)
            self._stop.wait(self.poll_s)

    def _what_stays(self) -> str:
        return "serving no model" if self.served is None else f"going on with {self.served.version}"

    def _say(self, text: str) -> None:
        """Log a line unless it is what was said last."""
        if text != self._said:
            _log.info(text)
            self._said = text
