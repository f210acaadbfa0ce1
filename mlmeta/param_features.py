"""One param of many attempts as features: its numbers, its words, and where it is missing."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.commands.params import format_param
from mlmeta.history.table import Floats, Ints

MISSING = -1.0


_LOG10 = re.compile(r"(.*_)?lr|learning_rate|weight_decay|eps")


_LOG2 = re.compile(r"batch_size|.*width.*|.*n_parameters.*|hidden")


_TRUTHS = {"true": 1.0, "false": 0.0}


_MANY_DECADES = 100.0


_MOST_WORDS = 20


_LEAST_SHARE = 0.005


_LONGEST_NAME = 80


# sklearn's trees compute with float32.
_LARGEST = 1e30


class ParamColumn:
    """One param of n attempts, read as numbers and as words.

    Attributes:
        is_missing: bool, shape (n,).
        numbers: float64, shape (n,); booleans and the words "true" and "false" are 1 and 0; NaN where the value is
            missing or another word.
    """

    def __init__(self, values: pd.Series[Any] | None, n: int) -> None:
        """Read a column; None is one of n missing values."""
        self._values = pd.Series([None] * n, dtype=object) if values is None else values
        self._words: tuple[Ints, list[str]] | None = None
        self.is_missing = self._values.isna().to_numpy(dtype=bool)
        self.numbers = self._read_numbers()

    def _read_numbers(self) -> Floats:
        if pd.api.types.is_numeric_dtype(self._values):
            given: Floats = self._values.to_numpy(dtype=np.float64, na_value=np.nan)
            return given
        codes, words = self.read_words()
        numbers = [_read_number(word) for word in words]
        return np.array([*(np.nan if x is None else x for x in numbers), np.nan])[codes]

    def read_words(self) -> tuple[Ints, list[str]]:
        """Return each attempt's index into the distinct values as texts, -1 where missing, and these texts."""
        if self._words is None:
            is_text = isinstance(self._values.dtype, pd.StringDtype)
            texts = self._values if is_text else self._values.map(_format, na_action="ignore")
            codes, words = pd.factorize(texts.astype(object))
            self._words = codes.astype(np.int64), [str(word) for word in words]
        return self._words


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
        codes, words = column.read_words()
        n_words = len(self.words)
        place_of = {word: place for place, word in enumerate(self.words)}
        # Numbers of a param that has both have their own feature; -1, for missing, finds the last place.
        places = [
            n_words + 1 if self.scale and _read_number(w) is not None else place_of.get(w, n_words) for w in words
        ]
        found = np.array([*places, n_words + 1])[codes]
        one_hot: Floats = np.eye(n_words + 2)[found][:, : n_words + self.has_rare]
        return one_hot


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
    codes, words = column.read_words()
    counts = np.bincount(codes[codes >= 0], minlength=len(words))
    ranked = sorted(zip(-counts, words, strict=True)) if words else []
    if scale:
        ranked = [(count, word) for count, word in ranked if _read_number(word) is None]
    least = max(2, _LEAST_SHARE * len(codes))
    chosen = tuple(word for count, word in ranked[:_MOST_WORDS] if -count >= least)
    return chosen, len(ranked) > len(chosen)


def _format(value: Any) -> str:
    """Return a value as MLflow would hold it; a whole number has no point, however it is kept."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    return format_param(plain) if isinstance(plain, str | bool | int | float) else str(plain)


def _read_number(text: str) -> float | None:
    """Return the number, or the truth as 0 or 1, that a text stands for; None for words, and for "nan"."""
    if len(text) > _LONGEST_NAME:
        return None
    try:
        number = float(text)
    except ValueError:
        return _TRUTHS.get(text.casefold())
    return None if np.isnan(number) else number


def _shorten_word(word: str) -> str:
    """Return a word as part of a feature's name; long words that begin alike stay apart."""
    if len(word) <= _LONGEST_NAME:
        return word
    return f"{word[: _LONGEST_NAME - 10]}…{hashlib.sha256(word.encode()).hexdigest()[:8]}"
