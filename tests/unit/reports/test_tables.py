"""Tables as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import io

import pytest

from glioray.reports.tables import Table

TABLE = Table(["name", "score"], [["a|b\nc", 0.123456], ["<b>&", None], ["text", "0.500 [0.4, 0.6]"]])


def test_markdown_replaces_what_would_break_a_row():
    assert TABLE.to_markdown().splitlines() == [
        "| name | score |",
        "| --- | --- |",
        "| a/b c | 0.1235 |",
        "| <b>& |  |",
        "| text | 0.500 [0.4, 0.6] |",
    ]


def test_numbers_can_be_aligned_to_the_right():
    assert TABLE.to_markdown(align_right=True).splitlines()[1] == "| --- | --: |"


def test_csv_keeps_every_value_in_full():
    rows = list(csv.reader(io.StringIO(TABLE.to_csv())))
    assert rows == [
        ["name", "score"],
        ["a|b\nc", "0.123456"],
        ["<b>&", ""],
        ["text", "0.500 [0.4, 0.6]"],
    ]


def test_html_is_escaped():
    text = TABLE.to_html()
    assert "<td>&lt;b&gt;&amp;</td><td></td>" in text
    assert "<th>name</th><th>score</th>" in text
    assert text.count("<tr>") == 4


def test_records_may_lack_keys():
    table = Table.from_records([{"a": 1}, {"b": 2, "a": 3}])
    assert (table.columns, table.rows) == (["a", "b"], [[1, None], [3, 2]])
    assert Table.from_records([{"a": 1, "b": 2}], ["b"]).to_csv() == "b\n2\n"


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="row 1 has 1 cells; expected one for each of 2 columns"):
        Table(["a", "b"], [[1, 2], [3]])
