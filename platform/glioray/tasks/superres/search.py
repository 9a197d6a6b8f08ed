"""The search space of super-resolution GANs, and the objective of its trials: a collapsed or dead one never wins.

A trial's own collapse watch ends it where it collapses or dies; a search reads the verdict. All trials start from one generator
that was pretrained by its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution

from glioray.cases.manifest import Manifest
from glioray.engine.search import Objective, Point, Row, Search
from glioray.engine.space import Space
from glioray.engine.trials import count_rows, saved_share
from glioray.errors import DataError
from glioray.tasks.superres.config import DEAD, CollapseConfig, GanConfig
from glioray.tasks.superres.space import (
    RATIO,
    SHARES,
    apply_gan_point,
    gan_space,
    pretraining,
    recipe_values,
    warm_shares,
)
from glioray.tasks.superres.trials import WORST, is_healthy, rates_rows, refine_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUALITY, _GAIN = "quality_or_penalty", "gain_or_penalty"


class SuperResSearch(Search):
    """Searches for the largest `objective`; a Pareto search, for quality and PSNR gain over bicubic."""

    worst = WORST
    objective = "objective"
    rate = "optim_g.lr"
    kept_metrics = (
        *("train_", "collapse_", "bicubic_", "dice_", "psnr", "ssim", "nrmse", "hfen", "lpips", "hf_db"),
        *("gain_psnr", "pixel_gain_psnr", "quality", "objective", "is_collapsed", "stage"),
    )
    columns = ("percent", "quality", "gain_psnr", "collapse_score")
    # Rates and weights. All else is the recipe's, as optimisers and networks pass from one member to another.
    mutable = ("optim_g.lr", RATIO, "loss.adversarial_weight", "loss.perceptual_weight", "loss.pixel_weight")
    # A member that collapses is not stopped but replaced.
    member_settings: Mapping[str, Any] = {"collapse.stop": False}
    summary_key = "collapse"
    unhealthy = "collapsed"

    def check_data(self, manifest: Manifest, config: GanConfig) -> None:
        if not manifest.select("val"):
            raise DataError(
                "a search judges collapse on validation cases and the split has none; choose another --fold"
            )

    def space(self, config: GanConfig, given: Sequence[str] = ()) -> Space:
        return gan_space(config, given)

    def values(self, config: GanConfig) -> dict[str, Any]:
        return recipe_values(config)

    def apply(self, config: GanConfig, point: Point, sources: Mapping[float, str]) -> GanConfig:
        return apply_gan_point(config, point, sources)

    def grace_percent(self, config: GanConfig) -> int:
        """Not before the watch can have seen a collapse or a death.

        Until then a trial's objective is its quality, and ASHA would compare collapsed trials with healthy ones; or it
        would stop one for its rank, and the collapse would stay unknown.
        """
        rules = config.collapse
        num_needed = rules.grace + max(rules.patience, rules.dead_patience)
        # A trial that starts from the longest pretraining has the fewest epochs, and at most one evaluation in each.
        num_epochs = max(1, round((1 - max(SHARES)) * config.train.max_epochs))
        verdict = 100 * num_needed // min(config.train.num_validations, num_epochs) + 1
        return min(100, max(30, verdict))

    def to_report(self, metrics: Mapping[str, float], config: GanConfig) -> dict[str, Any]:
        """A collapsed trial reports less of both objectives than any healthy one.

        Of the gain, its penalty is more than what counts as collapse by itself.
        """
        rules = config.collapse
        objective, score = metrics["objective"], metrics["collapse_score"]
        if not math.isfinite(objective):
            objective = WORST
        healthy = is_healthy(objective, rules)
        return {
            **metrics,
            "objective": objective,
            _QUALITY: metrics["quality"] if healthy else objective,
            _GAIN: metrics["gain_psnr"] if healthy else -rules.fidelity[1] * (1 + score),
            "percent": int(100 * metrics["progress"]),
        }

    def is_healthy(self, objective: float, config: GanConfig) -> bool:
        return is_healthy(objective, config.collapse)

    def objectives(self, config: GanConfig) -> tuple[Objective, Objective]:
        rules: CollapseConfig = config.collapse
        return (
            Objective(metric="quality", reported=_QUALITY, label="quality", worst=WORST, baseline=0.0),
            Objective(
                metric="gain_psnr",
                reported=_GAIN,
                label="PSNR gain over bicubic, dB",
                worst=-2 * rules.fidelity[1],
                baseline=0.0,
            ),
        )

    def refine_row(self, row: Row) -> Row:
        return refine_row(row)

    def warm_shares(self, config: GanConfig, space: Mapping[str, BaseDistribution]) -> tuple[float, ...]:
        return warm_shares(config, space)

    def warm_start(self, config: GanConfig, begin: float, end: float, source: str | None) -> GanConfig:
        return pretraining(config, begin, end, source)

    def summarize(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Also how many trials collapsed or died, how early each was stopped, and the share of planned steps that saved.

        Steps are the adversarial ones of trials.
        """
        counts = count_rows(rows)
        stopped = ("collapsed", DEAD)
        return {
            **counts,
            **{f"num_{state}": sum(row["state"] == state for row in rows) for state in stopped},
            "stopped_at_percent": sorted(row["percent"] for row in rows if row["state"] in stopped),
            "saved_by_collapse": sum(saved_share(rows, state, counts["planned_steps"]) for state in stopped),
        }

    def describe(self, summary: Mapping[str, Any], mode: str) -> str:
        if mode == "pbt":
            return (
                f"{summary['num_complete']} of {summary['num_trials']} members ended healthy, "
                f"{summary['num_collapsed']} collapsed, {summary['num_dead']} died and {summary['num_failed']} failed. "
                "Members that lagged, collapsed or died continued from better ones; the settings are those that each "
                "ended with.\n"
            )
        stopped = summary["stopped_at_percent"]
        when = ""
        if len(stopped) > 1:
            when = f", stopped at {stopped[0]} % to {stopped[-1]} % of their run"
        elif stopped:
            when = f", stopped at {stopped[0]} % of its run"
        return (
            f"{summary['num_collapsed']} of {summary['num_trials']} trials collapsed and {summary['num_dead']} died{when}; "
            f"{summary['num_failed']} failed, {summary['num_pruned']} were pruned by ASHA. Of "
            f"{summary['planned_steps']} planned steps, {summary['saved_by_collapse']:.0%} were saved by stopping them and "
            f"{summary['saved_by_asha']:.0%} by ASHA.\n"
        )

    def figures(self, rows: Sequence[Row], config: GanConfig) -> Mapping[str, Figure]:
        from glioray.tasks.superres.search_figures import rates_figure

        return {"rates.png": rates_figure(rates_rows(rows, config), threshold=config.collapse.threshold)}

    def version_tags(self, metrics: Mapping[str, float]) -> dict[str, str]:
        return {name: f"{metrics[name]:.4f}" for name in ("quality", "gain_psnr", "collapse_score")}
