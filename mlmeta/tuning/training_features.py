"""Attempts as a training sees them: numbers in which unlike commands on unlike tasks can be compared.

What a command means depends on the rest: a learning rate on the optimizer and its momentum, a batch size on the number
of pictures. Beside the params themselves the features are therefore

    rate   = log10(lr / (1 - momentum)), less `PLAIN_SHIFT` for optimizers that do not scale gradients (SGD)
    steps  = log2(pictures · epochs / batch size), the number of updates
    travel = rate + log10(updates), how far the weights can move
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
import pandas as pd

from mlmeta.analysis.features import encode_attempts
from mlmeta.commands.catalog import find_entry
from mlmeta.errors import CommandsError
from mlmeta.history.table import Floats, read_numbers

# In decades: the learning rate of SGD that does about what 1 does for Adam and its like.
PLAIN_SHIFT = 2.43
_PLAIN = frozenset({"SGD", "ASGD", "LBFGS"})
# The difference of each feature that makes two attempts clearly other ones, in the unit named. Learnt from real
# attempts (832 trainings, 13 tasks) by benchmarks/learn_kernel.py: the larger, the less the feature matters.
LENGTHS: Mapping[str, float] = MappingProxyType(
    {
        "rate": 1.6,  # decades
        "travel": 1.3,  # decades
        "steps": 6.6,  # octaves
        "batch": 9.3,  # octaves
        "decay": 10.8,  # decades
        "pictures": 2.6,  # octaves
        "labels": 10.8,  # octaves
        "plain": 1.6,  # 0 or 1
        "optimizer": 5.6,  # 0 or 1, for each name
        "batch_norm": 1.2,  # 0 or 1
        "depth": 2.0,  # layers with weights
        "width": 5.4,  # octaves
        "parameters": 11.6,  # octaves
        "dropout": 1.8,  # a probability
        "hidden": 7.7,  # octaves
        "activation": 3.2,  # 0 or 1, for each name
        "other": 4.0,  # the range of the feature
    }
)
_NO_DECAY = 1e-5


@dataclass(frozen=True)
class Reach:
    """How far from what was tried a feature may be: in decades, or, of dropout, as a probability.

    Attributes:
        word: What it is called.
        allowed: From the nearest value that was tried.
        scale: Over so much more nothing is known any more.
        usual: From where to where values count as tried by somebody; of the rate, from its optimizer's default.
    """

    word: str
    allowed: float
    scale: float
    usual: tuple[float, float]

    def measure_usual(self, values: Floats) -> Floats:
        """Return how far values are from the usual ones, in the shape of `values`; NaN for NaN."""
        return np.maximum(np.maximum(self.usual[0] - values, values - self.usual[1]), 0.0)


REACH: Mapping[str, Reach] = MappingProxyType(
    {
        "rate": Reach("learning rate", 0.5, 1.0, (-1.5, 1.5)),
        "decay": Reach("weight decay", 1.5, 1.0, (-5.0, -2.0)),
        "dropout": Reach("dropout", 0.3, 0.1, (0.0, 0.5)),
    }
)
_KNOWN = frozenset(
    "optimizer.name optimizer.lr optimizer.momentum optimizer.weight_decay batch_size n_epoch arch.batch_norm "
    "arch.depth arch.width arch.n_parameters arch.dropout arch.hidden arch.activation".split()
)
# Of these a missing param is one that the training goes without.
_TOLD = ("model", "optimizer", "scheduler", "criterion", "batch_size", "n_epoch", "arch")


def describe_trainings(
    table: pd.DataFrame, tasks: pd.DataFrame, lengths: Mapping[str, float] = LENGTHS, *, shift: float = PLAIN_SHIFT
) -> Floats:
    """Return attempts as points whose distances say how unlike they are.

    Args:
        table: Attempts, done or proposed, as `mlmeta.history.loading.load_attempts` gives them; to compare two, both
            must be in one table.
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives them, all that `table` names.
        lengths: As `LENGTHS`.
        shift: As `PLAIN_SHIFT`.

    Returns:
        float64, shape (n, d), finite; each feature divided by its length. What is not known is the median of what
        is, so that it speaks neither for nor against.
    """
    return scale_features(name_features(table, tasks, shift=shift), lengths)


def scale_features(features: Sequence[tuple[str, Floats]], lengths: Mapping[str, float]) -> Floats:
    """Return what `name_features` gives as points, shape (n, d), each feature divided by its length."""
    columns = [values / lengths[name.partition("=")[0]] for name, values in features]
    return np.stack(columns, axis=1)


def name_features(table: pd.DataFrame, tasks: pd.DataFrame, *, shift: float = PLAIN_SHIFT) -> list[tuple[str, Floats]]:
    """Return (a name of `LENGTHS`, "=" and a detail after it, and the values, shape (n,)) of all features."""
    batch = read_numbers(table, "batch_size")
    epochs = read_numbers(table, "n_epoch")
    described = tasks.drop_duplicates("task").set_index("task")
    of_task = described.reindex(table["task"])
    pictures = np.log2(np.e) * of_task["ln_n"].to_numpy(dtype=np.float64)
    optimizer = _words(table, "optimizer.name")
    plain = np.array([name in _PLAIN for name in optimizer], dtype=np.float64)
    momentum = np.clip(np.nan_to_num(read_numbers(table, "optimizer.momentum")), 0.0, 0.9999)
    rate = _log(np.log10, read_numbers(table, "optimizer.lr")) - np.log10(1 - momentum) - shift * plain
    steps = pictures + _log(np.log2, epochs / batch)
    decay = np.nan_to_num(read_numbers(table, "optimizer.weight_decay"))
    features = {
        "rate": rate,
        "travel": rate + steps * np.log10(2),
        "steps": steps,
        "batch": _log(np.log2, batch),
        "decay": np.log10(np.maximum(decay, _NO_DECAY)),
        "pictures": pictures,
        "labels": np.log2(np.e) * of_task["ln_n_labels"].to_numpy(dtype=np.float64),
        "plain": plain,
        "batch_norm": read_numbers(table, "arch.batch_norm"),
        "depth": read_numbers(table, "arch.depth"),
        "width": _log(np.log2, read_numbers(table, "arch.width")),
        "parameters": _log(np.log2, read_numbers(table, "arch.n_parameters")),
        "dropout": read_numbers(table, "arch.dropout"),
        "hidden": np.log2(1 + np.maximum(read_numbers(table, "arch.hidden"), 0)),
    }
    named = [(name, fill_unknown(values)) for name, values in features.items()]
    named += [(f"optimizer={word}", (optimizer == word).astype(np.float64)) for word in _kinds(optimizer, _PLAIN)]
    activation = _words(table, "arch.activation")
    named += [(f"activation={word}", (activation == word).astype(np.float64)) for word in _kinds(activation, ("ReLU",))]
    return named + _name_others(table)


def _name_others(table: pd.DataFrame) -> list[tuple[str, Floats]]:
    """Return what else differs among the attempts, every feature with range 1.

    Proposals and shipped attempts tell nothing of their pictures' preparation: there, what is missing is not known.
    """
    encoded = encode_attempts(table)
    others = []
    for i, (name, param) in enumerate(zip(encoded.names, encoded.params, strict=True)):
        values, bare = encoded.matrix[:, i], param.removeprefix("params.")
        if bare.partition(".")[0] not in _TOLD:
            values = fill_unknown(np.where(table[param].isna().to_numpy(), np.nan, values))
        if bare not in _KNOWN and np.ptp(values) > 0:
            others.append((f"other={name}", (values - values.min()) / np.ptp(values)))
    return others


def _words(table: pd.DataFrame, name: str) -> np.ndarray:
    values = table[name] if name in table.columns else pd.Series([""] * len(table))
    return values.astype(object).fillna("").astype(str).to_numpy()


def _kinds(words: np.ndarray, usual: object) -> list[str]:
    """Return the words that get a feature: at most the 20 most frequent, without those that others are told from."""
    counts = pd.Series(words).value_counts()
    return sorted(str(word) for word in counts.index[:20] if word and word not in usual)  # type: ignore[operator]


def _log(logarithm: np.ufunc, values: Floats) -> Floats:
    """Return the logarithm of what is positive, NaN elsewhere."""
    logs: Floats = logarithm(np.where(values > 0, values, np.nan))
    return logs


def fill_unknown(values: Floats) -> Floats:
    """Return values with the median of those that are finite, 0 without any, in place of the others."""
    known = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, np.median(known) if known.size else 0.0)


def measure_defaults(table: pd.DataFrame) -> Floats:
    """Return how many decades each learning rate is above its optimizer's default, shape (n,); NaN where not known."""
    rates = read_numbers(table, "optimizer.lr")
    defaults = np.array([_find_default_rate(name) for name in _words(table, "optimizer.name")], dtype=np.float64)
    return _log(np.log10, rates / defaults)


@cache
def _find_default_rate(optimizer: str) -> float:
    with contextlib.suppress(CommandsError):
        rate = find_entry("optimizer", optimizer).arguments.get("lr")
        return float(rate.default) if rate and isinstance(rate.default, int | float) else np.nan
    return np.nan
