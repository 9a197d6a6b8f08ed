"""What is away for now, such as a bucket that does not answer, and how long work waits for it; without torch."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import ObjectStoreFullError

from glioray.errors import GliorayError, StorageError, first_line

_log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSES_S = (10.0, 30.0, 60.0, 120.0, 240.0)
"""Between tries while a store or a server is away: eight minutes, beside the tries themselves."""

# Of pyarrow, by which Ray reads and writes a bucket.
_AWS_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|"
    r"UNKNOWN \(HTTP status (5\d\d|429)\))"
)


def is_ray_s_bucket_away(error: BaseException) -> bool:
    """Whether Ray could not reach a bucket in which it keeps files of its own."""
    return isinstance(error, OSError) and bool(_AWS_AWAY.search(str(error)))


def outlast(work: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep) -> T:
    """Do work, and do it again after a pause while a bucket or a server is away, or the object store full.

    Any other error is raised at once, as it is.

    Args:
        work: goes on where it was when it is done again.
        sleep: waits for seconds.
    """
    for pause_s in PAUSES_S:
        try:
            return work()
        except Exception as error:
            if not _is_away(error):
                raise
            _log.warning("%s; the next try is in %g s", _in_words(error), pause_s)
        sleep(pause_s)
    try:
        return work()
    except Exception as error:
        if is_ray_s_bucket_away(error):
            raise StorageError(_in_words(error), may_pass=True) from error
        raise


def find_causes(error: BaseException) -> list[BaseException]:
    """The error and all that it was raised from by Ray or Python, outermost first; of our own ones no further."""
    seen: list[BaseException] = [error]
    for item in seen:
        if isinstance(item, GliorayError):
            continue
        failures = getattr(item, "worker_failures", None) or {}
        names = ("cause", "_base_exc", "health_check_failure", "controller_failure")
        linked = (item.__cause__, *(getattr(item, name, None) for name in names), *failures.values())
        seen += [e for e in linked if isinstance(e, BaseException) and not any(e is one for one in seen)]
    return seen


def _is_away(error: BaseException) -> bool:
    causes = find_causes(error)
    # Of several ranks, one may have failed because another one did.
    own = [cause for cause in causes if isinstance(cause, GliorayError)]
    if own:
        return all(isinstance(cause, StorageError) and cause.may_pass for cause in own)
    return any(isinstance(cause, ObjectStoreFullError) or is_ray_s_bucket_away(cause) for cause in causes)


def _in_words(error: BaseException) -> str:
    if is_ray_s_bucket_away(error):
        return f"Ray cannot reach its files in the bucket ({first_line(error)})"
    return first_line(error)
