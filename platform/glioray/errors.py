"""The exceptions that reach a user.

    GliorayError
    ├── UsageError          invalid flag, setting or name (jobs exit with 2)
    │   └── RoomError       the cluster has no room for what was asked
    ├── StorageError        a bucket, a folder or an object cannot be read or written
    ├── CaseError           one case cannot be used; the others are unaffected
    ├── DataError           the data set as a whole cannot be used
    ├── ModelError          a checkpoint or a registered model cannot be loaded or does not fit
    ├── EndpointError       an endpoint refused a request, or does not answer
    └── TrainingError       a run failed: too few resources, or a worker that died
        └── DivergenceError the loss or a gradient is not finite; deterministic, so retrying will not help

Every message says in one sentence what was found, what was expected and what to do. Every class
keeps its arguments positional, so that Ray can pickle it from a worker to the driver.
"""


class GliorayError(Exception):
    """Base of all errors that glioray raises on purpose; jobs print them without a traceback.

    Attributes:
        exit_code: of a job.
        may_pass: whether the same work may succeed when it is tried again; `engine.on_ray.faults` acts on it.
    """

    exit_code = 1
    may_pass = False


class UsageError(GliorayError, ValueError):
    """Invalid flag, setting or name."""

    exit_code = 2


class RoomError(UsageError):
    """The cluster has no room for what was asked, within the time that was given."""


class StorageError(GliorayError):
    """A bucket, a folder or an object cannot be read or written.

    Args:
        message: the sentence.
        may_pass: the store does not answer, or not as it should, for now. Where a disk is full, a name is wrong or a
            right is missing, somebody has to act first.
    """

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message, may_pass)
        self.message, self.may_pass = message, may_pass

    def __str__(self) -> str:
        return self.message


class CaseError(GliorayError):
    """One case cannot be used.

    Args:
        case_id: the case's name in the data set.
        file: the key of the faulty object, or "" if the case as a whole is at fault.
        found: what was found and what was expected.
        advice: what to do about it.
    """

    def __init__(self, case_id: str, file: str, found: str, advice: str) -> None:
        super().__init__(case_id, file, found, advice)
        self.case_id, self.file, self.found, self.advice = case_id, file, found, advice

    def __str__(self) -> str:
        name = f"case {self.case_id}" if self.case_id else "file"
        where = f"{name}: {self.file}" if self.file else name
        return f"{where}: {self.found}; {self.advice}"


class DataError(GliorayError):
    """The data set as a whole cannot be used."""


class ModelError(GliorayError):
    """A checkpoint or a registered model cannot be loaded, or does not fit its input."""


class EndpointError(GliorayError):
    """An endpoint refused a request, or does not answer.

    Args:
        detail: the endpoint's own sentence where it sent one.
        status: of the answer; None where there was none.
        request_id: by which the endpoint's log knows the request, or None.
    """

    def __init__(self, detail: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(detail, status, request_id)
        self.detail, self.status, self.request_id = detail, status, request_id
        self.may_pass = status in (None, 429, 503)

    def __str__(self) -> str:
        return self.detail


class TrainingError(GliorayError):
    """A run failed: too few resources, or a worker that died."""

    may_pass = True


class DivergenceError(TrainingError):
    """A loss or a gradient is not finite. Deterministic: retrying will not help."""

    may_pass = False


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or else its type; at most 300 characters."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .;")
    return text if len(text) <= 300 else f"{text[:300]}…"
