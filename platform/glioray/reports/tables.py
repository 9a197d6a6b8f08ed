"""Tables of reports: columns and rows as Markdown, CSV or HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from glioray.reports.html import render


@dataclass(frozen=True)
class Table:
    """Rows of cells below the names of their columns.

    Rankings, the trials of a search, metrics by case and the cases of a data set are all such tables. In Markdown and
    HTML a float has four significant digits and None is an empty cell; a cell that is text stays as it is, so that a
    caller formats whatever else it wants. CSV keeps every value in full.

    Attributes:
        columns: names, in order.
        rows: each with one cell a column.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} has {len(row)} cells; expected one for each of {len(self.columns)} columns"
                )

    @classmethod
    def from_records(
        cls, records: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
    ) -> Table:
        """Build a table from rows by column; a row that lacks a column has an empty cell.

        Args:
            records: such as one a case and region, or one a trial.
            columns: by default all keys, in the order in which they first occur.
        """
        names = (
            list(dict.fromkeys(key for record in records for key in record)) if columns is None else columns
        )
        return cls(names, [[record.get(name) for name in names] for record in records])

    def to_markdown(self, *, align_right: bool = False) -> str:
        """The table in Markdown, ending in a line break; bars and line breaks within cells are replaced.

        Args:
            align_right: whether all columns but the first are aligned to the right, as suits numbers.
        """
        rule = ["---"] + (["--:"] if align_right else ["---"]) * (len(self.columns) - 1)
        lines = [list(self.columns), rule, *([_text(cell) for cell in row] for row in self.rows)]
        return "".join(f"| {' | '.join(map(_one_line, line))} |\n" for line in lines)

    def to_csv(self) -> str:
        """The table as CSV with a header; None is an empty cell."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()

    def to_html(self) -> Markup:
        """The table as an HTML element, escaped."""
        rows = [[_text(cell) for cell in row] for row in self.rows]
        return render("table.html", columns=self.columns, rows=rows)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
