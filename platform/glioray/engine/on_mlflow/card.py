"""A model's card: the description of a logged model and of its registered version, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from glioray.cases.casefiles import patient_of
from glioray.cases.manifest import Manifest
from glioray.engine.on_mlflow.client import page_link, wrap_errors
from glioray.engine.on_mlflow.runs import RunLogger
from glioray.engine.promotion import CANDIDATE, CHAMPION, Outcome
from glioray.engine.task import Spec, Task
from glioray.reports.case_metrics import CaseMetrics, interval_caveat, mean_metrics, metric_rows
from glioray.reports.tables import Table

COMPARISON = "Comparison with the champion"
"""Head of the section that a promotion adds."""


def model_card(
    task: Task, spec: Spec, cases: Mapping[str, CaseMetrics], logger: RunLogger, manifest: Manifest | None
) -> str:
    """The card of a model: its kind, its data, its validation with intervals, and the run's figures.

    Args:
        task: of the model.
        spec: of the model.
        cases: its last validation by case, then by region or modality; may be empty.
        logger: the model's run, whose figures are shown.
        manifest: of the training, where it is at hand.

    Raises:
        StorageError: MLflow cannot list the run's figures.
    """
    lines = [
        f"{task.purpose}, recipe `{spec.config.recipe}`, from the run [{logger.run_name}]({logger.link(logger.run_id)}). "
        "Research use only, not for clinical decisions.",
        "",
        "## Data",
        "",
    ]
    if manifest is not None:
        rows = []
        for split in ("train", "val", "test"):
            entries = manifest.select(split)
            rows.append([split, str(len(entries)), str(len({entry.patient_id for entry in entries}))])
        lines += Table(["split", "cases", "patients"], rows).to_markdown(align_right=True).splitlines()
        lines += ["", f"Data `{manifest.data}`, manifest `{manifest.hash}`."]
    else:
        lines.append(f"Trained on {len(spec.train_patients)} patients, manifest `{spec.manifest_hash}`.")
    lines += ["", "## Validation", "", *_validation(task, spec, cases), ""]
    with wrap_errors(f"list the figures of the run {logger.run_id}", logger.client):
        names = [file.path for file in logger.client.list_artifacts(logger.run_id)]
    pictures = [f"![{name.removesuffix('.png')}]({name})" for name in names if name.endswith(".png")]
    return logger.link_pictures("\n\n".join(["\n".join(lines), *pictures]))


def comparison_text(outcome: Outcome, champion: str | None) -> str:
    """The decision of a promotion, and the scores that it rests on.

    Args:
        outcome: of the comparison.
        champion: the version that was champion before, or None.
    """
    name, _, version = (champion or "").removeprefix("models:/").rpartition("/")
    before = f"[{champion}]({page_link(f'models/{name}/versions/{version}')})" if champion else "none"
    lines = [
        f"Champion before: {before}. {'Promoted' if outcome.wins else 'Not promoted'}: {outcome.reason}."
    ]
    scores = {key: value for key, value in outcome.answer.items() if isinstance(value, Mapping)}
    rows = [[key, scores[key].get(CANDIDATE), scores[key].get(CHAMPION)] for key in scores]
    if rows:
        table = Table(["score", "this version", "champion before"], rows)
        lines += ["", *table.to_markdown(align_right=True).splitlines()]
    if cases := outcome.answer.get("cases"):
        lines += ["", f"On {len(cases)} cases: {', '.join(cases[:20])}{', …' if len(cases) > 20 else ''}."]
    return "\n".join(lines)


def _validation(task: Task, spec: Spec, cases: Mapping[str, CaseMetrics]) -> list[str]:
    if not cases:
        kept = {
            name: value for name, value in spec.metrics.items() if name.startswith(task.search.kept_metrics)
        }
        table = Table(["metric", "last validation"], [[name, f"{value:.4f}"] for name, value in kept.items()])
        return table.to_markdown(align_right=True).splitlines()
    patients = {case_id: patient_of(case_id) for case_id in cases}
    num_patients = len(set(patients.values()))
    columns = list(next(iter(mean_metrics(cases).values())))
    rows = metric_rows(cases, patients, dict.fromkeys(columns, 3))
    table = Table(["", "cases", *columns], [[name.upper(), *cells] for name, cells in rows.items()])
    return [
        f"Means over {len(cases)} case(s) of {num_patients} patient(s) that the model was not trained on, with 95 % "
        "intervals by resampling patients." + interval_caveat(num_patients),
        "",
        *table.to_markdown(align_right=True).splitlines(),
    ]
