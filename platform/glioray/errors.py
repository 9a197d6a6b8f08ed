"""The exceptions that a user can meet.

    GliorayError
    ├── UsageError          what was asked for cannot be: a flag, a config, a name (jobs exit 2)
    ├── StorageError        a bucket, a folder or an object cannot be read or written
    ├── CaseError           one case cannot be used; the others go on
    ├── DataError           the data set as a whole cannot be used
    ├── ModelError          a checkpoint or a registered model cannot be loaded or does not fit
    └── TrainingError       a run went wrong by itself: too few resources, a worker that died
        └── DivergenceError its loss or a gradient is no longer finite: it would go the same way again

Every message says what was found, what was expected and what to do, in one sentence. Every class
keeps its arguments positional, so that Ray can pickle it from a worker to the driver.
"""


class GliorayError(Exception):
    """Base of everything that glioray raises on purpose; jobs print it without a traceback."""

    exit_code = 1


class UsageError(GliorayError, ValueError):
    """What was asked for cannot be."""

    exit_code = 2


class StorageError(GliorayError):
    """A bucket, a folder or an object cannot be read or written."""


class CaseError(GliorayError):
    """One case cannot be used.

    Args:
        case_id: the case as the data set names it.
        file: the key of the object at fault, or "" where the case as a whole is.
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
    """A checkpoint or a registered model cannot be loaded, or does not fit what it is given."""


class TrainingError(GliorayError):
    """A run went wrong by itself."""


class DivergenceError(TrainingError):
    """A run's loss or a gradient is no longer finite; that is a result, and comes again."""
