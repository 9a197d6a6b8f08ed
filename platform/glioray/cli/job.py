"""A job: flags to one typed request, one call, one JSON line on stdout, an exit code."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from glioray.api import requests
from glioray.cli.console import Console
from glioray.cli.flags import build_request, parse_flags
from glioray.errors import GliorayError, first_line
from glioray.progress import log_to_stderr
from glioray.serialization import json_schema

_DRY_RUN = {"dry-run": "print what would be done, such as the resolved config, without starting Ray"}
_SCHEMA = {
    "schema": "print the JSON schema of the config: every setting with its type, range, default and meaning"
}


class Job:
    """One script below `jobs/`.

    Args:
        verb: a module of `glioray.api` whose request type is named after it, such as "train".
        doc: the script's docstring; its first line is the job's help text.
        task: whose recipes the job takes; None for a job of every task.
        without: further fields of the request that are not flags.
        recipe_variable: an environment variable with the default recipe; it goes with GLIORAY_DATA, so that data of
            one's own get the usual default.
    """

    def __init__(
        self,
        verb: str,
        doc: str | None,
        *,
        task: str | None = None,
        without: Collection[str] = (),
        recipe_variable: str | None = None,
    ) -> None:
        self.verb, self.task, self.without, self.recipe_variable = verb, task, without, recipe_variable
        self.summary = (doc or "").strip().splitlines()[0]
        self.request_type: type[requests.Request] = getattr(requests, f"{verb.title()}Request")

    def parse(self, argv: Sequence[str], *, name: str = "") -> tuple[Any, dict[str, bool]] | None:
        """The request of a command line and the job's own switches; None after `--help`.

        Raises:
            UsageError: a flag or a value that is not allowed.
        """
        parsed = parse_flags(
            self.request_type,
            argv,
            name=name or self.verb,
            help_text=self.summary,
            hidden=self._hidden(),
            switches=_DRY_RUN if self.task is None else _DRY_RUN | _SCHEMA,
        )
        if parsed is None:
            return None
        fields, switches = parsed
        if self.task is not None:
            fields["task"] = self.task
            recipe = os.environ.get(self.recipe_variable or "")
            if recipe and not fields.get("data"):
                fields.setdefault("recipe", recipe)
        return build_request(self.request_type, fields), switches

    def answer(self, argv: Sequence[str], *, name: str = "") -> dict[str, Any]:
        """Carry out the job; its JSON answer, with "exit_code" where that is not 0. Empty after `--help`.

        Raises:
            GliorayError: what goes wrong.
        """
        parsed = self.parse(argv, name=name)
        return {} if parsed is None else self._carry_out(*parsed)

    def run(self) -> NoReturn:
        """Carry out the command line of this process, print the answer and exit."""
        name, *argv = sys.argv
        console = Console(Path(name).stem)

        def work() -> dict[str, Any]:
            parsed = self.parse(argv, name=Path(name).name)
            if parsed is None:
                return {}
            if not any(parsed[1].values()):
                console.start()
            log_to_stderr()
            return self._carry_out(*parsed)

        run_job(work, console)

    def _carry_out(self, request: requests.Request, switches: Mapping[str, bool]) -> dict[str, Any]:
        if switches.get("schema"):
            return self._schema()
        module = importlib.import_module(f"glioray.api.{self.verb}")
        if switches["dry-run"]:
            preview: dict[str, Any] = module.preview(request)
            return preview
        result = getattr(module, self.verb).carry_out(request)
        answer = dict(result.answer)
        return answer | ({"exit_code": result.exit_code} if result.exit_code else {})

    def _schema(self) -> dict[str, Any]:
        """The JSON schema of the configs of the job's task."""
        # Imported late: help needs no task, which brings torch.
        from glioray.tasks import load_task

        return json_schema(load_task(str(self.task)).config_type)

    def _hidden(self) -> set[str]:
        """Fields that are not flags: the task, where the job has one, and fields of other tasks."""
        hidden = set(self.without)
        if self.task is None:
            return hidden
        for name, field in self.request_type.model_fields.items():
            only = (field.json_schema_extra or {}).get("only")  # type: ignore[union-attr]
            if name == "task" or (only and only != self.task):
                hidden.add(name)
        return hidden


def run_job(work: Callable[[], dict[str, Any]], console: Console | None = None) -> NoReturn:
    """Run a job: its answer is one JSON object, the last line of stdout; everything else goes to stderr or the log.

    Exits with 0; with 1 when the job failed; with 2 for an invalid flag, setting or name. An answer may state its own
    under "exit_code", which is left out of the JSON.

    Args:
        work: returns the answer.
        console: which `work` may start.
    """
    console = console or Console("")
    if {"-h", "--help"} & set(sys.argv[1:]):
        work()  # prints to stdout, where help is looked for
        sys.exit(0)
    with _stdout_kept() as answer:
        try:
            result = work()
            code = result.pop("exit_code", 0)
            _leave_cluster()  # or a worker's last words would come after ours
            console.stop()
            answer(json.dumps(result, default=str))
        except GliorayError as error:
            code = _fail(console, str(error), error.exit_code)
        except KeyboardInterrupt:
            code = _fail(console, "interrupted; run again with the same --run-name to resume", 130)
        except Exception as error:
            if console.log is None:
                raise
            traceback.print_exc()
            code = _fail(
                console, f"{first_line(error)} ({type(error).__name__}); its origin is in the log", 1
            )
    sys.exit(code)


def _fail(console: Console, sentence: str, code: int) -> int:
    if console.log is not None:
        _leave_cluster()
        console.stop()
    console.show(f"error: {sentence}")
    return code


def _leave_cluster() -> None:
    if "ray" in sys.modules:
        from glioray.engine.on_ray.connect import disconnect

        disconnect()


@contextlib.contextmanager
def _stdout_kept() -> Iterator[Callable[[str], None]]:
    """Sends whatever libraries and workers print to stderr; yields what writes to the real stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)

    def answer(line: str) -> None:
        sys.stdout.flush()
        os.write(kept, f"{line}\n".encode())

    try:
        yield answer
    finally:
        sys.stdout.flush()
        os.close(kept)
