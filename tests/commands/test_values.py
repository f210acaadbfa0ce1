from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmeta.commands.catalog import read_value

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Image.ANTIALIAS", "LANCZOS"),
        ("PIL.Image.ANTIALIAS", "LANCZOS"),
        ("Image.Resampling.BICUBIC", "BICUBIC"),
        ("Image.FLIP_LEFT_RIGHT", "FLIP_LEFT_RIGHT"),
        ("Image.Transpose.ROTATE_90", "ROTATE_90"),
        ("InterpolationMode.BILINEAR", "BILINEAR"),
        ("transforms.InterpolationMode.BILINEAR", "BILINEAR"),
        ("AutoAugmentPolicy.CIFAR10", "CIFAR10"),
        ("'InterpolationMode.BILINEAR'", "BILINEAR"),
        ("'RGB'", "RGB"),
        ('"RGB"', "RGB"),
        ("''", ""),
        ("True", True),
        ("False", False),
        ("None", None),
        ("(0.9, 0.999)", (0.9, 0.999)),
        ("[500,500]", (500, 500)),
        (" ( 1 , -2 , +3, ) ", (1, -2, 3)),
        ("(1e-3, .5, 5.)", (0.001, 0.5, 5.0)),
        ("(5,)", (5,)),
        ("[5]", (5,)),
        ("(5)", 5),
    ],
)
def test_the_forms_of_older_documents_are_read(text: str, value: Any) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_whole_numbers_in_a_row_stay_whole() -> None:
    assert [type(number) for number in read_value("(1, 2.0)")] == [int, float]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RGB",
        "2 * 3",
        "2*3",
        "5",
        "0.5",
        "__import__('os').system('x')",
        "(__import__('os'), 1)",
        "(1, 2",
        "(1, 2]",
        "(1 2)",
        "(1,, 2)",
        "(,)",
        "()",
        "((1, 2), 3)",
        "(1, 'a')",
        "(1_000, 2)",
        "(0x10, 2)",
        "(inf, 2)",
        "(٣, ٤)",
        "Image.open",
        "Image.__class__",
        "Image.Resampling.__class__",
        "os.ANTIALIAS",
        "Image.ANTIALIAS.X",
        "Image.ANTIALIAS()",
        "'it's'",
        "'RGB",
        "lambda: 0",
        "true",
        "nan",
        "(" * 1000,
        "(" + "1" * 998,
        "(1" + " " * 990,
        "(" + "1," * 499,
        "(" + "1 , " * 200 + "x)",
        "(" + "1, " * 400 + ")",
    ],
)
def test_any_other_string_stays_as_it_is(text: str) -> None:
    assert read_value(text) == text


def test_lists_and_dicts_are_read_through() -> None:
    assert read_value({"a": ["'RGB'", {"b": "None"}], "True": "x"}) == {"a": ["RGB", {"b": None}], "True": "x"}


@given(JSON)
def test_values_without_strings_stay_as_they_are(value: Any) -> None:
    assert read_value(value) == value


@given(st.text())
def test_no_string_is_refused(text: str) -> None:
    assert isinstance(read_value(text), str | bool | int | float | tuple | None)


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), min_size=2, max_size=9))
def test_a_written_row_of_numbers_is_read_as_python_reads_it(numbers: list[float]) -> None:
    assert read_value(str(tuple(numbers))) == tuple(numbers)
