"""What a forest predicts for values of one param, on average over the values of all others.

The averages are exact for the forest and for params taken as independent (`mlmeta.analysis.fanova`). Where attempts
were few the forest only guesses; `n_attempts` says where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.analysis.fanova import Factor, TreeEffects
from mlmeta.analysis.features import ParamColumn
from mlmeta.analysis.sample import MOST_VALUES, Sample, draw_sample, fit_resampled, join_rates, make_factors
from mlmeta.commands.params import format_param
from mlmeta.history.table import Floats, Ints

_N_FORESTS = 20


@dataclass(frozen=True, eq=False)
class _Points:
    """Values of one param to look at.

    Attributes:
        values: As they are shown: numbers, words, None for a missing one.
        rows: Their features, shape (k, c).
        places: Index of the point that each attempt is at or nearest to, shape (n,).
    """

    values: list[Any]
    rows: Floats
    places: Ints

    @property
    def n_attempts(self) -> Ints:
        return np.bincount(self.places, minlength=len(self.values)).astype(np.int64)


def marginal_effect(
    table: pd.DataFrame,
    param: str,
    *,
    metric: str = "accuracy",
    task: str | None = None,
    n_points: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what a forest predicts for values of one param, on average over the values of all others.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        param: The param.
        metric: The score: of one task as it is (a failed attempt has the worst one), across tasks as rank quantiles
            (`mlmeta.analysis.features.score_ranks`: 0 is a middling attempt of its task, higher is better).
        task: Name or digest of the one task to look at; None for all of them.
        n_points: At most as many numbers; where attempts have more, evenly spaced ones on the param's own scale
            (logarithmic where it spreads over decades).
        seed: Decides all that is drawn.

    Returns:
        value: numbers in order, then words, the most frequent first ("rare" for all rare ones), then a missing value
        for attempts without the param; float64, boolean, or where there are words str. mean, low, high: prediction
        with its 95 % interval over forests fitted to resampled tasks and commands; a learning rate comes with the
        optimizers that attempts near it have. n_attempts: attempts at the value, or nearer to it than to the others.

    Raises:
        TooFewAttemptsError: If fewer than 20 attempts have a score to compare.
        NotFoundError: If there is no such task.
        BadInputError: If the table lacks the metric or the param.
    """
    sample = draw_sample(table, metric, task=task, extra=param, as_ranks=task is None, seed=seed)
    points = _choose_points(sample, param, n_points=max(2, n_points))
    factors = _place_points(sample, param, points)
    curves = np.array(
        [
            np.mean([TreeEffects(tree.tree_, factors).mean_by(param) for tree in forest.estimators_], axis=0)
            for forest in fit_resampled(sample, n_forests=_N_FORESTS, seed=seed)
        ]
    )
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    columns = {"value": _type_values(points.values), "mean": curves.mean(axis=0), "low": low, "high": high}
    return pd.DataFrame({**columns, "n_attempts": points.n_attempts})


def _place_points(sample: Sample, param: str, points: _Points) -> list[Factor]:
    """Return the params as inputs, one with the values of `points`, all others as the attempts have them.

    A learning rate comes with the optimizers that attempts near it have, and an optimizer with its learning rates.
    """
    encoded = sample.encoded
    factors = [factor for factor in make_factors(encoded) if param not in factor.places]
    if param not in encoded.joined:
        weights = points.n_attempts / len(sample.scores)
        place = Factor(encoded.columns_of(param), points.rows, weights, {param: np.arange(len(weights))})
        return [*factors, place]
    rates, optimizers = (
        points if name == param else _choose_points(sample, name, n_points=MOST_VALUES) for name in encoded.joined
    )
    counts = np.zeros((len(rates.values), len(optimizers.values)))
    np.add.at(counts, (rates.places, optimizers.places), 1.0)
    # A learning rate near which there is no attempt comes with all optimizers, by their frequency.
    counts += 1e-6 * optimizers.n_attempts
    return [*factors, join_rates(encoded, rates.rows, optimizers.rows, counts / counts.sum(), relative=False)]


def _type_values(values: list[Any]) -> pd.Series[Any]:
    """Return numbers as float64, booleans as boolean, and words, also with numbers among them, as str."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {float}:
        return pd.Series(values, dtype="float64")
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    # As MLflow would hold them, numbers with at most six digits.
    texts = [f"{x:.6g}" if isinstance(x, float) else x if x is None else format_param(x) for x in values]
    return pd.Series(texts, dtype="str")


def _choose_points(sample: Sample, param: str, *, n_points: int) -> _Points:
    """Return the values of a param to look at: numbers in order, then words by frequency, then "missing"."""
    given, encoded = sample.table[param], sample.encoded
    features, scale = encoded.matrix[:, encoded.columns_of(param)], encoded.scale_of(param)
    is_number = ~np.isnan(ParamColumn(given).numbers) & (scale != "")
    parts = []
    if is_number.any():
        parts.append(_choose_numbers(features[is_number], scale=scale, n_points=n_points))
    if not is_number.all():
        parts.append(_choose_words(features[~is_number], given[~is_number]))
    values = [value for part in parts for value in part.values]
    if pd.api.types.is_bool_dtype(given):
        values = [None if value is None else bool(value) for value in values]
    places = np.empty(len(features), dtype=np.int64)
    if is_number.any():
        places[is_number] = parts[0].places
    if not is_number.all():
        places[~is_number] = parts[-1].places + len(values) - len(parts[-1].values)
    return _Points(values, np.vstack([part.rows for part in parts]), places)


def _choose_numbers(features: Floats, *, scale: str, n_points: int) -> _Points:
    """Return the numbers themselves, or evenly spaced ones where there are more than `n_points`."""
    grid = np.unique(features[:, 0])
    if len(grid) > n_points:
        grid = np.linspace(grid[0], grid[-1], n_points)
    rows = np.zeros((len(grid), features.shape[1]))
    rows[:, 0] = grid
    numbers = {"log2": np.exp2(grid), "log10": 10.0**grid}.get(scale, grid)
    places = np.searchsorted((grid[:-1] + grid[1:]) / 2, features[:, 0])
    return _Points([float(f"{number:.6g}") for number in numbers], rows, places.astype(np.int64))


def _choose_words(features: Floats, given: pd.Series[Any]) -> _Points:
    """Return words, the most frequent first, and None for attempts without the param, last."""
    rows, places = np.unique(features, axis=0, return_inverse=True)
    places = places.ravel()
    values = [_name_word(given[places == i]) for i in range(len(rows))]
    counts = np.bincount(places)
    order = sorted(range(len(rows)), key=lambda i: (values[i] is None, -counts[i]))
    return _Points([values[i] for i in order], rows[order], np.argsort(order)[places].astype(np.int64))


def _name_word(given: pd.Series[Any]) -> str | None:
    """Return the word that attempts with the same features have; there are several where each of them is rare."""
    words = given.dropna().unique()
    if not len(words):
        return None
    return str(words[0]) if len(words) == 1 else "rare"
