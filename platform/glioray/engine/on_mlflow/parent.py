"""The parent MLflow run of a sweep's trials or a comparison's runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glioray.engine.on_mlflow.runs import Kind, RunLogger
from glioray.engine.run import RunPlan, claim_run, log_page
from glioray.serialization import to_dict
from glioray.storage import open_storage


@contextmanager
def parent_run(base: RunPlan, kind: Kind, **facts: Any) -> Iterator[RunLogger]:
    """Claim the run name of `base` and open its MLflow run; it ends, or fails, with the block.

    Args:
        base: the plan with the name, storage and data of the whole.
        kind: of the run.
        facts: params beside the recipe's settings and the data.

    Raises:
        UsageError: the name is taken by a run with other settings or other data.
    """
    claim_run(open_storage(base.storage), base)
    recipe = base.config.recipe
    tags = {"glioray.manifest_hash": base.manifest.hash, "glioray.recipe": recipe}
    logger = RunLogger.open_run(
        base.experiment, base.run_name, kind=kind, tags=tags, tracking_uri=base.tracking_uri
    )
    try:
        log_page(logger)
        logger.log_data(base.manifest)
        logger.log_params({**to_dict(base.config), "recipe": recipe, **facts, "data": base.manifest.data})
        yield logger
        logger.finish()
    except Exception as error:
        logger.finish("FAILED", str(error) or type(error).__name__)
        raise
