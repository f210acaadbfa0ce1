"""Attempts as numbers: their params as the columns of a matrix, their scores as rank quantiles within their task.

Notation: n attempts, d features, m attempts of one task, Φ the standard normal distribution function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from mlmeta.history.table import (
    FAILED,
    Floats,
    Ints,
    check_column,
    list_params,
    lower_is_better,
    read_numbers,
    read_scores,
)
from mlmeta.param_features import MISSING, ParamColumn, ParamRecipe, plan_features

# An attempt alone on its task is neither the best nor the worst of many.
_LONE_SHARES = (0.05, 0.95)


RATE, OPTIMIZER = "optimizer.lr", "optimizer.name"


# Of params: what says nothing about how an attempt was made, or stands in arch.* already.
_LEFT_OUT = re.compile(
    r"(model\.layers|test|task)\..*|(.*\.)?(seed|path|paths|file|config|ids?|label_names|n_labels|model_name|run_id)"
    r"|(initial_weights|stop|space)(\..*)?|model\.weights"
)


@dataclass(frozen=True)
class _RelativeRate:
    """The feature "log lr minus the median log lr of its optimizer", made of two other params' features.

    Attributes:
        place: Index of the feature.
        rate: Index of log lr.
        missing: Index of "lr is missing"; None where it never was.
        names: Indices of the optimizers' features.
        medians: The median log lr of each of `names`, shape (len(names),).
        median: That of the others.
    """

    place: int
    rate: int
    missing: int | None
    names: Ints
    medians: Floats
    median: float

    def relate(self, matrix: Floats) -> Floats:
        return self._with(matrix, self.place, matrix[:, self.rate] - self._usual(matrix))

    def restore(self, matrix: Floats) -> Floats:
        return self._with(matrix, self.rate, matrix[:, self.place] + self._usual(matrix))

    def _usual(self, matrix: Floats) -> Floats:
        usual: Floats = self.median + matrix[:, self.names] @ (self.medians - self.median)
        return usual

    def _with(self, matrix: Floats, place: int, rates: Floats) -> Floats:
        filled = matrix.copy()
        filled[:, place] = rates if self.missing is None else np.where(matrix[:, self.missing] > 0, MISSING, rates)
        return filled


@dataclass(frozen=True, eq=False)
class EncodedAttempts:
    """Attempts as a matrix, and the way to encode others alike.

    Attributes:
        matrix: float64, shape (n, d), finite, in the order of the table's rows.
        names: For people, what each of the d features is: ``log10 optimizer.lr``, ``optimizer.name=Adam``.
        params: The param that each of the d features belongs to.
    """

    matrix: Floats
    names: tuple[str, ...]
    params: tuple[str, ...]
    _recipes: tuple[ParamRecipe, ...]
    _relative_rate: _RelativeRate | None

    @property
    def joined(self) -> tuple[str, ...]:
        """The params that have a feature in common: lr and optimizer, by lr within its optimizer; else none."""
        return (RATE, OPTIMIZER) if self._relative_rate else ()

    def encode(self, table: pd.DataFrame) -> Floats:
        """Return other attempts, or commands yet to be tried, as a matrix of shape (n, d) in the same way.

        A param that `table` lacks is missing; a word that was not seen before counts as rare, and as none of the
        known words where no word was rare.
        """
        return self.relate_rates(_encode(self._recipes, table, n_features=len(self.names)))

    def columns_of(self, param: str, *, relative: bool = False) -> Ints:
        """Return the indices of a param's features, without one of the two that say the same with the optimizer.

        Args:
            param: The param.
            relative: Whether a learning rate is told relative to its optimizer, or as it is.
        """
        told_otherwise = -1
        if self._relative_rate:
            told_otherwise = self._relative_rate.rate if relative else self._relative_rate.place
        return np.array([i for i, p in enumerate(self.params) if p == param and i != told_otherwise], dtype=np.int64)

    def relate_rates(self, matrix: Floats) -> Floats:
        """Return a matrix of shape (n, d) with lr within its optimizer computed anew from lr and optimizer."""
        return self._relative_rate.relate(matrix) if self._relative_rate else matrix

    def restore_rates(self, matrix: Floats) -> Floats:
        """Return a matrix of shape (n, d) with lr computed anew from lr within its optimizer, and optimizer."""
        return self._relative_rate.restore(matrix) if self._relative_rate else matrix

    def scale_of(self, param: str) -> str:
        """Return the scale of a param's number: "linear", "log2", "log10", or "" where it has none."""
        return next(recipe.scale for recipe in self._recipes if recipe.param == param)


def encode_attempts(table: pd.DataFrame, params: Sequence[str] | None = None) -> EncodedAttempts:
    """Return the params of attempts as a matrix that a model can be fitted to.

    A number is itself or its logarithm: log10 for learning rates, weight decay, eps and whatever is positive and
    spans more than two decades, log2 for batch sizes, widths and counts of parameters; 0 then stands one unit below
    the least positive value. A boolean is 0 or 1. Words are one-hot: the 20 most frequent of those that at least
    two attempts and 0.5 % have, all others together as "rare". A param with both has both. Missing is -1 (all words
    0) and has an indicator wherever some attempt lacks the param. What a learning rate means depends on the
    optimizer: log lr minus the median log lr of that optimizer is one more feature of ``optimizer.lr``.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        params: The params to encode. None for those that differ among the attempts and say how an attempt was made:
            neither layers one by one (``arch.*`` stands for them), names of labels, paths, seeds, ``test.*`` nor
            what describes the task (``task.*``).

    Raises:
        BadInputError: If the table lacks one of `params`.
    """
    chosen = [p for p in list_params(table) if not _LEFT_OUT.fullmatch(_bare(p))] if params is None else list(params)
    for param in chosen:
        check_column(table, param, what="param")
    recipes, blocks = [], []
    for param in dict.fromkeys(chosen):
        column = ParamColumn(table[param], len(table))
        recipe = plan_features(param, column)
        block = recipe.encode(column) if recipe else np.zeros((len(table), 0))
        if recipe and (params is not None or (len(block) and np.ptp(block, axis=0).any())):
            recipes.append(recipe)
            blocks.append(block)
    matrix = np.hstack(blocks) if blocks else np.zeros((len(table), 0))
    return _add_relative_rate(matrix, tuple(recipes))


def score_ranks(table: pd.DataFrame, metric: str) -> Floats:
    """Return each attempt's score as a normal quantile of its rank within its task, so that tasks can be compared.

    z = Φ⁻¹((rank - 1/2) / m), rank 1 the worst and m the best of the m attempts of the task that have a score; equal
    scores share the mean of their ranks. A failed or diverged attempt has the worst rank, whatever it has scored.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        metric: The score; its name says whether lower is better.

    Returns:
        float64, shape (n,), higher is better. NaN where there is nothing to compare: no score and not failed, an
        unknown task, or the only attempt of its task that has a score.

    Raises:
        BadInputError: If the table lacks the metric, or it is no number.
    """
    values = read_scores(table, metric)
    scores = pd.Series(-values if lower_is_better(metric) else values, index=table.index)
    scores = scores.mask(table["status"].isin(FAILED), -np.inf)
    by_task = scores.groupby(table["task"])
    m = by_task.transform("count").to_numpy(dtype=np.float64, na_value=np.nan)
    ranks = by_task.rank(method="average").to_numpy(dtype=np.float64, na_value=np.nan)
    levels, places = np.unique(np.where(m > 1, (ranks - 0.5) / np.maximum(m, 1), np.nan), return_inverse=True)
    normal = NormalDist()
    return np.array([np.nan if np.isnan(p) else normal.inv_cdf(p) for p in levels], dtype=np.float64)[places]


def score_quantiles(table: pd.DataFrame, metric: str) -> Floats:
    """Return what `score_ranks` gives, and for a task's only attempt its accuracy above chance taken for its rank.

    An attempt alone has no rank; but one that is nearly always right is a good one on any task.
    """
    z = score_ranks(table, metric)
    alone = np.isnan(z) & ~table["status"].isin(FAILED).to_numpy(dtype=bool) & table["task"].notna().to_numpy()
    labels = read_numbers(table, "task.n_labels")
    if not metric.endswith("accuracy") or not alone.any():
        return z
    chance = 1 / np.where(labels >= 2, labels, np.nan)
    shares = (read_scores(table, metric) - chance) / (1 - chance)
    normal = NormalDist()
    for row in np.flatnonzero(alone & np.isfinite(shares)):
        z[row] = normal.inv_cdf(float(np.clip(shares[row], *_LONE_SHARES)))
    return z


def _encode(recipes: Sequence[ParamRecipe], table: pd.DataFrame, *, n_features: int) -> Floats:
    """Return shape (n, n_features); features made of two params stand at the end and are 0."""
    n = len(table)
    blocks = [r.encode(ParamColumn(table[r.param] if r.param in table.columns else None, n)) for r in recipes]
    matrix = np.hstack(blocks) if blocks else np.zeros((n, 0))
    return np.hstack([matrix, np.zeros((n, n_features - matrix.shape[1]))])


def _add_relative_rate(matrix: Floats, recipes: tuple[ParamRecipe, ...]) -> EncodedAttempts:
    names = [name for recipe in recipes for name in recipe.name_features()]
    params = [recipe.param for recipe in recipes for _ in recipe.name_features()]
    optimizers = np.array([i for i, name in enumerate(params) if name == OPTIMIZER], dtype=np.int64)
    place_of = {name: i for i, name in enumerate(names) if params[i] == RATE}
    rate, missing = place_of.get(f"log10 {RATE}"), place_of.get(f"{RATE} is missing")
    if rate is None or not optimizers.size:
        return EncodedAttempts(matrix, tuple(names), tuple(params), recipes, None)
    relative = _measure_rates(matrix, rate=rate, missing=missing, optimizers=optimizers)
    widened = np.hstack([matrix, np.zeros((len(matrix), 1))])
    names.append(f"log10 {RATE} within {OPTIMIZER}")
    return EncodedAttempts(relative.relate(widened), tuple(names), (*params, RATE), recipes, relative)


def _measure_rates(matrix: Floats, *, rate: int, missing: int | None, optimizers: Ints) -> _RelativeRate:
    has_rate = matrix[:, missing] == 0 if missing is not None else np.ones(len(matrix), dtype=bool)
    rates = matrix[:, rate]
    median = float(np.median(rates[has_rate])) if has_rate.any() else 0.0
    of_each = [rates[has_rate & (matrix[:, i] > 0)] for i in optimizers]
    medians = np.array([np.median(own) if own.size else median for own in of_each])
    return _RelativeRate(matrix.shape[1], rate, missing, optimizers, medians, median)


def _bare(name: str) -> str:
    return name.removeprefix("params.")
