"""Names of labels and channels in dataset.json, in the words that collections use."""

from __future__ import annotations

import re
from typing import Any

from glioray.cases.conventions import LabelConvention, make_convention

# The first that is found counts: "non-enhancing FLAIR hyperintensity" is oedema, and "non-enhancing" not "enhancing".
_WORDS: tuple[tuple[str, str], ...] = (
    ("background", r"background|bg|unlabell?ed|healthy.*|normal.*|everything else|outside"),
    ("ignore", r"ignored?(?: label)?|void"),
    ("rc", r"rc|(?:.* )?(?:resection|surgical|postoperative|post operative)\b.*|cavity"),
    ("ed", r"ed|(?:.* )?(?:o?edema\w*|snfh|flair\b.*|hyperintens\w*|infiltrat\w*|invaded\b.*)(?: .*)?"),
    ("tc", r"tc|(?:tumou?r )?core|gtv|gross tumou?r volume"),
    (
        "ncr",
        r"ncr|net|netc|ne|nec|cc|ncr netc?|(?:.* )?(?:necro\w*|non ?enh\w*|nonenh\w*|not enhanc\w*|unenhanc\w*|cyst\w*)(?: .*)?",
    ),
    ("et", r"et|aet|cet|ce|at|(?:.* )?(?:enhanc\w*|active)(?: .*)?"),
    (
        "wt",
        r"wt|whole|(?:(?:whole|complete|entire|brain|abnormal) )?(?:tumou?r|glioma|glioblastoma|gbm|lgg|hgg)(?: (?:mask|region|lesion))?",
    ),
)
_PATTERNS = [(part, re.compile(pattern)) for part, pattern in _WORDS]
EXPECTED = "necrosis, oedema, enhancing tumour, resection cavity, tumour core, whole tumour"
"""Examples of names that are understood, for messages."""

_TOGETHER = {frozenset(("ncr", "et")): "tc", frozenset(("tc", "et")): "tc", frozenset(("tc", "ncr")): "tc"}


def part_of(name: str) -> str | None:
    """The part of a tumour that a label's name stands for: as in `LabelConvention.parts`, "background", "ignore", or None.

    "Necrosis and enhancing tumour" is the core; with oedema it is the whole tumour.
    """
    outside = re.sub(r"\(.*?\)", " ", name)
    text = re.sub(r"\bT2 */ *FLAIR", "FLAIR", outside if outside.strip() else name, flags=re.IGNORECASE)
    if re.search(r"\b(?:without|excluding|except|minus)\b", text, re.IGNORECASE):
        return None
    pieces = {
        _part_of_words(piece) for piece in re.split(r"\b(?:and|plus)\b|[+&/,]", text, flags=re.IGNORECASE)
    }
    if None in pieces or len(pieces) == 1:
        return _part_of_words(text)
    inside = frozenset(piece for piece in pieces if piece is not None) - {"ed"}
    core = _TOGETHER.get(inside, next(iter(inside)) if len(inside) == 1 else None)
    if "ed" not in pieces or core is None:
        return core
    return "wt" if core in ("tc", "wt") else None


def _part_of_words(name: str) -> str | None:
    words = " ".join(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))
    return next((part for part, pattern in _PATTERNS if pattern.fullmatch(words)), None)


def read_labels(labels: Any) -> tuple[LabelConvention | None, str]:
    """The convention that `labels` of a dataset.json states, or None and why it states none.

    Args:
        labels: numbers to names (Decathlon, nnU-Net 1), or names to a number or, for a region, to several (nnU-Net 2).
    """
    if not isinstance(labels, dict) or not labels:
        return None, "names no labels"
    named: dict[str, set[int]] = {}
    for key, value in labels.items():
        name, numbers = (value, [key]) if re.fullmatch(r"\d+", str(key)) else (key, value)
        listed = numbers if isinstance(numbers, list) else [numbers]
        if isinstance(name, str) and all(re.fullmatch(r"\d+", str(number)) for number in listed):
            named.setdefault(name, set()).update(int(number) for number in listed)
        else:
            return None, f"has the label {key!r}: {value!r}, which is not a name and its numbers"
    marks: dict[int, set[str]] = {}
    for name, found in named.items():
        part = part_of(name)
        if part is None and found != {0}:
            return None, f"names the label '{name}', which is none of the words known, such as {EXPECTED}"
        for number in found - {0}:
            marks.setdefault(number, set()).add(str(part))
    everywhere = {part for parts in marks.values() for part in parts}
    parts: dict[int, str] = {}
    for number, found_parts in marks.items():
        part = _innermost(found_parts, everywhere)
        if part is None:
            return None, f"names the label {number} as {' and '.join(sorted(found_parts))} at once"
        if part != "ignore":
            parts[number] = part
    convention = make_convention(parts)
    if not convention.regions:
        return None, "names no label that makes up a tumour, its core or its enhancing part"
    return convention, ""


def _innermost(parts: set[str], everywhere: set[str]) -> str | None:
    """The one part of a number that lies in several nested regions; None if they contradict each other."""
    leaves = parts - {"wt", "tc"}
    if leaves:
        return next(iter(leaves)) if len(leaves) == 1 else None
    if "tc" in parts or "ed" in everywhere:
        # The core, or a tumour that is named beside its oedema: without the enhancing part, if that has a number.
        return "ncr" if "et" in everywhere else "tc"
    return "ed" if "tc" in everywhere else "wt"
