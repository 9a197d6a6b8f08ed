"""Texts of flags as values."""

from glioray.serialization import parse_value


def test_numbers_and_words_are_read_as_people_write_them() -> None:
    values = {
        "0.001": 0.001,
        ".001": 0.001,
        "1.": 1.0,
        "+2": 2,
        "-.5e-3": -0.0005,
        "1_000": 1000,
        "true": True,
        "True": True,
        "None": None,
        "null": None,
        "[.5, .3, .2]": [0.5, 0.3, 0.2],
        "(96, 96)": [96, 96],
        '{"a": 1}': {"a": 1},
        '"1"': "1",
        "adam": "adam",
        "a,b": "a,b",
        "1-2": "1-2",
        "1e-3s": "1e-3s",
        "s3://bucket/a": "s3://bucket/a",
        "{1, 2}": "{1, 2}",
        "1j": "1j",
        "": "",
    }
    found = {text: parse_value(text) for text in values}
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]
