"""A served model that follows its URI, such as an alias of the registry."""

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
    """Holds the model of a URI, and replaces it when the URI resolves to another version.

    `served` is replaced as a whole, so that a request keeps the model that it began with. While the registry does not
    answer, or a new version cannot be loaded, the old one stays. When the registry answers that the alias is gone, no
    model is served any more: this withdraws a model.

    Attributes:
        load: loads the model of a package's folder onto a device.
        resolve: finds the version that the URI stands for now; by default the registry says.
        on_change: is called after every look.
        served: the model, or None.
        reason: why there is none, in a sentence for clients.
    """

    def __init__(
        self,
        uri: str,
        load: Callable[[Path, str | None], M],
        *,
        poll_s: float,
        tracking_uri: str | None = None,
        device: str | None = None,
        resolve: Callable[[str], str] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.uri, self.load = uri, load
        self.poll_s, self.tracking_uri, self.device = poll_s, tracking_uri, device
        self.resolve, self.on_change = resolve or self._ask_registry, on_change
        self.served: Served[M] | None = None
        self.reason = "the model is being loaded; try again in some seconds"
        self._was_resolved = False
        self._last_message = ""
        self._ended = False
        self._wake = threading.Event()

    @property
    def state(self) -> Literal["ready", "loading", "waiting"]:
        """ "loading" until the URI was resolved once."""
        if self.served is not None:
            return "ready"
        return "waiting" if self._was_resolved else "loading"

    @property
    def status(self) -> str:
        """The served version, or why there is none, in a sentence for clients."""
        served = self.served
        return self.reason if served is None else f"serving {served.version}"

    def start(self) -> None:
        """Start a thread that resolves the URI now and then every `poll_s` seconds."""
        threading.Thread(target=self._run, name="model-watch", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._ended = True
        self._wake.set()

    def follow(self) -> None:
        """Let the thread resolve the URI now."""
        self._wake.set()

    def refresh(self) -> None:
        """Resolve the URI once, and load its version unless that is served already."""
        version = self.uri
        try:
            version = self.resolve(self.uri)
            if self.served is None or self.served.version != version:
                self.served = self._load(version)
            self._log_once(f"serving {version}")
        except StorageError as error:
            self.reason = "no model is served, because the registry does not answer; try again later"
            self._log_once(f"{error}; {self._consequence()}")
        except GliorayError as error:
            if version != self.uri:
                self.reason = (
                    f"no model is served, because {version} cannot be loaded; promote another version"
                )
            else:
                self.reason = f"no model is served, because there is no '{self.uri}'; promote a version of it"
                if isinstance(error, ModelError):
                    self.served = None
            self._log_once(f"{error}; {self._consequence()}")
        finally:
            self._was_resolved = True
            self.on_change()

    def _ask_registry(self, uri: str) -> str:
        return resolve_version(uri, tracking_uri=self.tracking_uri)

    def _load(self, version: str) -> Served[M]:
        with tempfile.TemporaryDirectory() as folder:
            package = fetch_package(version, Path(folder), tracking_uri=self.tracking_uri)
            return Served(version, self.load(package, self.device))

    def _run(self) -> None:
        while not self._ended:
            self._wake.clear()
            try:
                self.refresh()
            except Exception:  # the thread must survive unexpected errors
                _log.exception("looking for %s failed; trying again in %g s", self.uri, self.poll_s)
            self._wake.wait(self.poll_s)

    def _consequence(self) -> str:
        return "serving no model" if self.served is None else f"going on with {self.served.version}"

    def _log_once(self, text: str) -> None:
        """Log a line unless it equals the last one."""
        if text != self._last_message:
            _log.info(text)
            self._last_message = text
