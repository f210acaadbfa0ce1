"""Cutting a JSON list into its items, whatever the pieces in which its text comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmeta.exchange.documents import Piece, split_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def cut(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def split(text: str, *, size: int = 7, max_characters: int = 10**6) -> list[Piece]:
    return list(split_list(cut(text, size), max_characters=max_characters))


@given(
    values=st.lists(VALUES, max_size=5),
    size=st.integers(1, 20),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_the_items_are_those_that_json_reads(
    values: list[Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    assert [json.loads(str(piece.text)) for piece in split(text, size=size)] == values


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_brackets_and_quotes_inside_strings_do_not_count(size: int) -> None:
    text = r'[{"a": "],}\"[{"}, "\\", {"b\\\"": "\\\\"}]'
    assert [piece.text for piece in split(text, size=size)] == [r'{"a": "],}\"[{"}', r'"\\"', r'{"b\\\"": "\\\\"}']


def test_a_piece_knows_the_line_on_which_it_begins() -> None:
    assert [piece.line for piece in split('\n[\n\n {"a":\n 1},\n2, 3\n,4]\n', size=4)] == [4, 6, 6, 7]


def test_an_item_that_is_too_long_is_passed_over() -> None:
    pieces = split('[1, {"a":\n"' + "x" * 100 + '"},\n2]', max_characters=20)
    assert [(piece.text, piece.line) for piece in pieces] == [("1", 1), (None, 1), ("2", 3)]


def test_an_item_that_is_no_json_leaves_the_others_as_they_are() -> None:
    assert [piece.text for piece in split("[{},, nonsense,{}]")] == ["{}", "", "nonsense", "{}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2", "not closed"), ('["a', "not closed"), ("[1] [2]", "behind the end"), ("[{}}, {}]", "behind the end")],
)
def test_a_list_that_does_not_end_well_is_told_after_its_items(text: str, message: str) -> None:
    pieces = split_list(cut(text, 3), max_characters=100)
    with pytest.raises(ValueError, match=message):
        list(pieces)
