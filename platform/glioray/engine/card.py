"""The card of a model that is shared: a README beside its weights, for whoever meets it without glioray."""

from __future__ import annotations

from collections.abc import Sequence

from glioray.engine.package import SPEC_FILE, WEIGHTS_FILE
from glioray.engine.task import ModelPackage
from glioray.reports.tables import Table

CARD_FILE = "README.md"


def model_card(
    package: ModelPackage,
    *,
    title: str,
    digest: str,
    num_bytes: int,
    licence: str | None,
    about: str,
    evaluations: Sequence[str],
) -> str:
    """The card in Markdown, with the front matter that model hubs read.

    Args:
        package: the model.
        title: heading.
        digest: of `portable.package_hash`.
        num_bytes: size of the weights.
        licence: such as cc-by-4.0; None where the owner states none.
        about: Markdown of the owner: the data with the attribution that they ask for, intended use, limits.
        evaluations: Markdown pages that evaluate.py or compare.py wrote.
    """
    spec, task = package.spec, package.task
    facts = [
        ["task", task.name],
        ["recipe", spec.config.recipe],
        ["weights", f"{num_bytes / 1e6:.2f} MB, safetensors; no pickle"],
        ["trained on", f"{len(spec.train_patients)} patients, named in `{SPEC_FILE}`"],
        ["data", f"manifest {spec.manifest_hash}"],
        ["voxel size of the training cases", " x ".join(f"{size:g}" for size in spec.spacing_mm) + " mm"],
        ["licence", licence or "not stated; ask the owner before you use it"],
        ["SHA-256", f"`{digest}`"],
    ]
    metrics = [[name, value] for name, value in sorted(spec.metrics.items())]
    parts = [
        f"---\nlicense: {licence or 'unknown'}\nlibrary_name: glioray\ntags: [mri, brain-tumor, {task.name}]\n---\n",
        f"# {title}\n",
        f"{task.purpose}, a model of glioray. **Research use only: not a medical device, not for "
        "clinical decisions.**\n",
        Table(["", ""], facts).to_markdown(),
        about.strip() + "\n" if about.strip() else "",
        "## Use\n",
        f"`{SPEC_FILE}` and `{WEIGHTS_FILE}` are the model; their folder, or a zip file of it, is what `--model` takes, "
        f"followed by `#sha256={digest}` to have it checked:\n",
        '```python\nimport glioray\n\nmodel = glioray.load_model("FOLDER")\n'
        'result = model.predict(glioray.load_case("CASE"))\n```\n',
        *(_below_heading(page) for page in evaluations),
    ]
    if metrics:
        parts += [
            "## Last report of its training\n",
            Table(["metric", "value"], metrics).to_markdown(align_right=True),
        ]
    return "\n".join(part for part in parts if part)


def _below_heading(page: str) -> str:
    """A page with its headings one level lower."""
    return (
        "\n".join(f"#{line}" if line.startswith("#") else line for line in page.strip().splitlines()) + "\n"
    )
