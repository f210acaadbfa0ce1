"""The tag of the training losses: short enough for MLflow, and read back as it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmeta.commands.params import parse_curve, thin_curve, write_curve


@pytest.mark.parametrize("n", [1, 100, 700, 5000])
def test_a_thinned_curve_fits_a_tag_and_keeps_both_ends(n: int) -> None:
    values = [1 / (index + 3) for index in range(n)]
    kept = thin_curve(values)
    assert len(json.dumps(kept)) <= 8000
    assert kept[0] == pytest.approx(values[0], rel=1e-5)
    assert kept[-1] == pytest.approx(values[-1], rel=1e-5)


def test_a_thinned_curve_has_null_where_the_loss_is_not_finite() -> None:
    assert thin_curve([1.0, math.nan, math.inf, None]) == [1.0, None, None, None]
    assert thin_curve([]) == []


@given(st.lists(st.floats(width=32) | st.none(), max_size=300))
def test_a_curve_that_fits_is_read_back_to_six_digits(values: list[float | None]) -> None:
    read = parse_curve(write_curve(values))
    assert read is not None
    expected = [math.nan if value is None or not math.isfinite(value) else value for value in values]
    np.testing.assert_allclose(read, expected, rtol=1e-5)


@pytest.mark.parametrize("text", ["", "null", "no curve", '{"a": 1}', "[[1]]", '["x"]', "[" * 100_000, "5"])
def test_what_is_no_curve_is_none(text: str) -> None:
    assert parse_curve(text) is None
