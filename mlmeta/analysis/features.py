"""Attempts as numbers: their params as the columns of a matrix, their scores as rank quantiles within their task.

Notation: n attempts, d features, m attempts of one task, Φ the standard normal distribution function.

A param gives its numbers, its words, and where it is missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy.special import ndtri

from mlmeta.commands.params import format_param
from mlmeta.history.table import (
    FAILED,
    Floats,
    Ints,
    check_column,
    list_params,
    lower_is_better,
    read_numbers,
    read_scores,
    read_texts,
)

RATE, OPTIMIZER = "optimizer.lr", "optimizer.name"
MISSING = -1.0
# Of params: what says nothing about how an attempt was made, or stands in arch.* already.
_LEFT_OUT = re.compile(
    r"(model\.layers|test|task)\..*|(.*\.)?(seed|path|paths|file|config|ids?|label_names|n_labels|model_name|run_id)"
    r"|(initial_weights|stop|space)(\..*)?|model\.weights"
)
_LOG10 = re.compile(r"(.*_)?lr|learning_rate|weight_decay|eps")
_LOG2 = re.compile(r"batch_size|.*width.*|.*n_parameters.*|hidden")
_TRUTHS = {"true": 1.0, "false": 0.0}
_MANY_DECADES = 100.0
_MOST_WORDS = 20
_LEAST_SHARE = 0.005
_LONGEST_NAME = 80
# sklearn's trees compute with float32.
_LARGEST = 1e30
# An attempt alone on its task is neither the best nor the worst of many.
_LONE_SHARES = (0.05, 0.95)


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
        return self.median + matrix[:, self.names] @ (self.medians - self.median)

    def _with(self, matrix: Floats, place: int, rates: Floats) -> Floats:
        filled = matrix.copy()
        filled[:, place] = rates if self.missing is None else np.where(matrix[:, self.missing] > 0, MISSING, rates)
        return filled


@dataclass(frozen=True)
class ParamRecipe:
    """How one param becomes features: its number, one per word, one for rarer words, one for "missing".

    Attributes:
        param: Its column.
        scale: "linear", "log2", "log10", or "" where it has no numbers.
        zero: What is taken in place of numbers that have no logarithm: one unit below the least positive one.
        words: The frequent words, each of them a feature.
        has_rare: Whether there is a feature for all other words.
        has_missing: Whether there is a feature for attempts without the param.
    """

    param: str
    scale: str
    zero: float
    words: tuple[str, ...]
    has_rare: bool
    has_missing: bool

    def name_features(self) -> list[str]:
        """Return what each feature is, for people, in the order of `encode`."""
        number = {"": [], "linear": [self.param]}.get(self.scale, [f"{self.scale} {self.param}"])
        words = [f"{self.param}={_shorten_word(word)}" for word in self.words]
        rare, missing = [f"{self.param} is rare"] * self.has_rare, [f"{self.param} is missing"] * self.has_missing
        return number + words + rare + missing

    def encode(self, column: ParamColumn) -> Floats:
        """Return the features of n attempts, finite, shape (n, number of names)."""
        parts = []
        if self.scale:
            parts.append(self._encode_numbers(column.numbers)[:, None])
        if self.words or self.has_rare:
            parts.append(self._encode_words(column))
        if self.has_missing:
            parts.append(column.is_missing[:, None].astype(np.float64))
        return np.hstack(parts)

    def _encode_numbers(self, numbers: Floats) -> Floats:
        finite = np.nan_to_num(numbers, nan=0.0)
        if self.scale == "linear":
            scaled: Floats = np.clip(finite, -_LARGEST, _LARGEST)
        else:
            logarithm = np.log2 if self.scale == "log2" else np.log10
            scaled = logarithm(np.where(finite > 0, finite, self.zero))
        return np.where(np.isnan(numbers), MISSING, scaled)

    def _encode_words(self, column: ParamColumn) -> Floats:
        codes, words = column.words
        n_words = len(self.words)
        place_of = {word: place for place, word in enumerate(self.words)}
        # Numbers of a param that has both have their own feature; -1, for missing, finds the last place.
        is_word = np.isnan(column.word_numbers)
        places = [
            place_of.get(word, n_words) if lone or not self.scale else n_words + 1
            for word, lone in zip(words, is_word, strict=True)
        ]
        found = np.array([*places, n_words + 1])[codes]
        one_hot: Floats = np.eye(n_words + 2)[found][:, : n_words + self.has_rare]
        return one_hot


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
        params = table.reindex(columns=[recipe.param for recipe in self._recipes])
        blocks = [recipe.encode(ParamColumn(params[recipe.param])) for recipe in self._recipes]
        relative = np.zeros((len(table), int(self._relative_rate is not None)))
        return self.relate_rates(np.hstack([*blocks, relative]))

    def columns_of(self, param: str, *, relative: bool = False) -> Ints:
        """Return the indices of a param's features, without one of the two that say the same with the optimizer.

        A learning rate is told relative to its optimizer if `relative`, else as it is.
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


def list_making_params(table: pd.DataFrame) -> list[str]:
    """Return the params that say how an attempt was made, on whatever task."""
    return [name for name in list_params(table) if not _LEFT_OUT.fullmatch(name.removeprefix("params."))]


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
    chosen = list_making_params(table) if params is None else list(params)
    for param in chosen:
        check_column(table, param, what="param")
    recipes, blocks = [], [np.zeros((len(table), 0))]
    for param in dict.fromkeys(chosen):
        column = ParamColumn(table[param])
        recipe = plan_features(param, column)
        block = recipe.encode(column) if recipe else blocks[0]
        if recipe and (params is not None or (len(block) and np.ptp(block, axis=0).any())):
            recipes.append(recipe)
            blocks.append(block)
    return _add_relative_rate(np.hstack(blocks), tuple(recipes))


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
    z: Floats = ndtri(np.where(m > 1, (ranks - 0.5) / np.maximum(m, 1), np.nan))
    return z


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
    return np.where(alone & np.isfinite(shares), ndtri(np.clip(shares, *_LONE_SHARES)), z)


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


@dataclass(frozen=True, eq=False)
class ParamColumn:
    """One param of n attempts, read as numbers and as words."""

    values: pd.Series[Any]

    @cached_property
    def is_missing(self) -> npt.NDArray[np.bool_]:
        """Where there is no value, bool, shape (n,)."""
        return self.values.isna().to_numpy(dtype=bool)

    @cached_property
    def numbers(self) -> Floats:
        """Float64, shape (n,): booleans and the words "true" and "false" are 1 and 0, NaN is for other words too."""
        if pd.api.types.is_numeric_dtype(self.values):
            return self.values.to_numpy(dtype=np.float64, na_value=np.nan)
        return np.append(self.word_numbers, np.nan)[self.words[0]]

    @cached_property
    def word_numbers(self) -> Floats:
        """What `numbers` are of each distinct text: a number as `mlmeta.history.table.read_texts` reads them all."""
        words = self.words[1]
        numbers = read_texts(pa.array(words, pa.string()))
        truths = np.array([_TRUTHS.get(word.casefold(), np.nan) for word in words])
        # Beside a 1, True is a word.
        return np.where(np.isnan(numbers) & ~np.isin(truths, numbers), truths, numbers)

    @cached_property
    def words(self) -> tuple[Ints, list[str]]:
        """Each attempt's index into the distinct values as texts, -1 where missing, and these texts."""
        is_text = isinstance(self.values.dtype, pd.StringDtype)
        texts = self.values if is_text else self.values.map(_format, na_action="ignore")
        codes, words = pd.factorize(texts.astype(object))
        return codes.astype(np.int64), [str(word) for word in words]


def plan_features(param: str, column: ParamColumn) -> ParamRecipe | None:
    """Return how a param is encoded, as its name and its values say; None where there is no attempt."""
    is_number = ~np.isnan(column.numbers)
    n_present = int(np.count_nonzero(~column.is_missing))
    # A few numbers among words, such as "auto, 5", are words.
    has_numbers = 2 * np.count_nonzero(is_number) >= max(1, n_present)
    scale = _choose_scale(param, column.numbers[is_number]) if has_numbers else ""
    positive = column.numbers[is_number & (column.numbers > 0)]
    unit = {"log2": 2.0, "log10": 10.0}.get(scale, 1.0)
    words, has_rare = ((), False) if has_numbers and is_number.sum() == n_present else _choose_words(column, scale)
    has_missing = n_present < len(column.numbers)
    if not (scale or words or has_rare or has_missing):
        return None
    zero = max(float(positive.min()) / unit, 5e-324) if positive.size else 1.0
    return ParamRecipe(param, scale, zero, words, has_rare, has_missing)


def _choose_scale(name: str, numbers: Floats) -> str:
    last = name.rsplit(".", 1)[-1]
    positive = numbers[numbers > 0]
    if numbers.min() < 0 or not positive.size:
        return "linear"
    if _LOG2.fullmatch(last):
        return "log2"
    spread = positive.size == numbers.size and numbers.max() / _MANY_DECADES > numbers.min()
    return "log10" if spread or _LOG10.fullmatch(last) else "linear"


def _choose_words(column: ParamColumn, scale: str) -> tuple[tuple[str, ...], bool]:
    """Return the words that get a feature, the most frequent first, and whether there are others."""
    codes, words = column.words
    counts = np.bincount(codes[codes >= 0], minlength=len(words))
    ranked = sorted(zip(-counts, words, strict=True)) if words else []
    if scale:
        lone = {word for word, number in zip(words, column.word_numbers, strict=True) if np.isnan(number)}
        ranked = [(count, word) for count, word in ranked if word in lone]
    least = max(2, _LEAST_SHARE * len(codes))
    chosen = tuple(word for count, word in ranked[:_MOST_WORDS] if -count >= least)
    return chosen, len(ranked) > len(chosen)


def _format(value: Any) -> str:
    """Return a value as MLflow would hold it; a whole number has no point, however it is kept."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    return format_param(plain) if isinstance(plain, str | bool | int | float) else str(plain)


def _shorten_word(word: str) -> str:
    """Return a word as part of a feature's name; long words that begin alike stay apart."""
    if len(word) <= _LONGEST_NAME:
        return word
    return f"{word[: _LONGEST_NAME - 10]}…{hashlib.sha256(word.encode()).hexdigest()[:8]}"
