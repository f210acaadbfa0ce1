"""Which params matter for the score, and how.

Two answers that can differ stand side by side. *Importance* is the share of the variance of a forest's predictions
that a param explains by itself, with all params taken as independent (functional ANOVA, `mlmeta.analysis.fanova`).
*Permutation* is how much worse held-out attempts are predicted when the param is shuffled;
there what a param does only together with others counts too.

Across tasks scores are compared by their ranks within each task. A learning rate counts relative to the median of its
optimizer: 0.1 is high for Adam and not for SGD. What a param does need not be its own doing: a momentum that only SGD
has tells the optimizer too.

Permutation importance is after L. Breiman, "Random Forests", Machine Learning 45, 2001, section 10, with held-out
attempts in place of those out of the bag: R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)² over all attempts, each predicted by a
model that has seen neither its task (where there are several) nor its commands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.analysis.fanova import TreeEffects
from mlmeta.analysis.features import EncodedAttempts
from mlmeta.analysis.sample import Sample, draw_sample, draw_times, fit_forest, fit_resampled, make_factors, split_folds
from mlmeta.history.table import Floats, Ints

_MEASURED = tuple(f"{name}{end}" for name in ("importance", "permutation") for end in ("", "_low", "_high"))
COLUMNS = ("param", *_MEASURED, "n_attempts", "n_tasks")
_POOR_R2 = 0.1
_N_TREES = 50
_N_RESAMPLES = 500
# The mean over many attempts needs fewer repeats of each.
_MOST_PREDICTIONS = 10_000


def measure_importance(
    table: pd.DataFrame,
    metric: str = "accuracy",
    *,
    task: str | None = None,
    n_repeats: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much each param matters for the score, the most important first.

    The params are those that `mlmeta.analysis.features.encode_attempts` chooses.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them; of more than 2,000 with a score, 2,000
            are drawn.
        metric: The score, taken as rank quantiles within each task (`mlmeta.analysis.features.score_ranks`).
        task: Name or digest of the one task to look at; None for all of them.
        n_repeats: How many forests are fitted, and how often each param is shuffled; at least 2.
        seed: Decides all that is drawn.

    Returns:
        Columns `COLUMNS`. importance: share of the variance that the param's main effect explains, 0 to 1, the mean
        over forests of 10 trees fitted to resampled tasks and commands, 95 % of them between its low and high.
        permutation: drop of held-out R² when the param is shuffled, its 95 % interval over tasks and commands.
        n_attempts, n_tasks: of the attempts that have the param. ``attrs``: ``r2`` (of attempts whose task, where
        there are several, and commands were held out), ``interactions`` (share of the variance that no single param
        explains), ``n_attempts``, ``n_tasks``, and ``note``: what to beware of, or an empty text.

    Raises:
        TooFewAttemptsError: If fewer than 20 attempts have a score to compare.
        NotFoundError: If there is no such task.
        BadInputError: If the table lacks the metric.
    """
    sample = draw_sample(table, metric, task=task, seed=seed)
    if not sample.params:
        return _without_params(sample)
    n_repeats = max(2, n_repeats)
    shares = _measure_shares(sample, n_forests=n_repeats, seed=seed)
    held_out = measure_held_out(sample, n_repeats=n_repeats, seed=seed)
    frame = _tabulate(sample, shares, held_out)
    frame.attrs = _describe(sample, held_out, interactions=1.0 - float(shares.sum(axis=1).mean()))
    return frame


def _tabulate(sample: Sample, shares: Floats, held_out: HeldOut) -> pd.DataFrame:
    """Return one row a param, the most important first."""
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    has_param = [sample.table[name].notna().to_numpy(dtype=bool) for name in sample.params]
    columns = (
        sample.params,
        shares.mean(axis=0),
        low,
        high,
        held_out.drops,
        held_out.low,
        held_out.high,
        [int(has.sum()) for has in has_param],
        [len(np.unique(sample.tasks[has])) for has in has_param],
    )
    frame = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return frame.sort_values(["importance", "permutation"], ascending=False, kind="stable", ignore_index=True)


def _measure_shares(sample: Sample, *, n_forests: int, seed: int) -> Floats:
    """Return each param's main effect as a share of the variance, by forest, shape (n_forests, n_params)."""
    factors = make_factors(sample.encoded)
    shares = []
    for forest in fit_resampled(sample, n_forests=n_forests, seed=seed):
        effects = [TreeEffects(tree.tree_, factors) for tree in forest.estimators_]
        shares.append([np.mean([effect.share_of(name) for effect in effects]) for name in sample.params])
    return np.array(shares, dtype=np.float64)


def _describe(sample: Sample, held_out: HeldOut, *, interactions: float) -> dict[Hashable, Any]:
    if np.isnan(held_out.r2):
        note = "all attempts have the same score"
    elif held_out.r2 < _POOR_R2:
        note = f"held-out R² is {held_out.r2:.2f}: these params hardly predict the score, so their order means little"
    else:
        note = ""
    return {
        "r2": held_out.r2,
        "interactions": interactions,
        "n_attempts": len(sample.scores),
        "n_tasks": sample.n_tasks,
        "note": note,
    }


def _without_params(sample: Sample) -> pd.DataFrame:
    frame = pd.DataFrame(columns=COLUMNS).astype({"param": "str", "n_attempts": "int64", "n_tasks": "int64"})
    frame = frame.astype(dict.fromkeys(_MEASURED, "float64"))
    nothing = HeldOut(float("nan"), *[np.zeros(0)] * 3)
    frame.attrs = _describe(sample, nothing, interactions=float("nan"))
    frame.attrs["note"] = "no param differs among the attempts"
    return frame


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What models say of attempts that they have not seen.

    Attributes:
        r2: Held-out R², at most 1; below 0 where the mean predicts better; NaN where all scores are equal.
        drops: By how much it falls when a param is shuffled, shape (n_params,).
        low: Lower end of the 95 % interval of each drop: how far it depends on which tasks and commands there are.
        high: The upper end.
    """

    r2: float
    drops: Floats
    low: Floats
    high: Floats


def measure_held_out(sample: Sample, *, n_repeats: int, seed: int) -> HeldOut:
    """Return held-out R² and its drop for each of the sample's params, in their order.

    Each is shuffled `n_repeats` times, at least twice; of more than 500 attempts less often.
    """
    rng = np.random.default_rng(seed)
    n, params = len(sample.scores), sample.params
    n_repeats = max(2, min(n_repeats, _MOST_PREDICTIONS // n))
    squares, rises = np.zeros(n), np.zeros((n, len(params)))
    for fitted, held in split_folds(sample, seed=seed):
        matrix, scores = sample.encoded.matrix, sample.scores
        model = fit_forest(sample, fitted, n_trees=_N_TREES, seed=int(rng.integers(2**31)))
        squares[held] = (scores[held] - model.predict(matrix[held])) ** 2
        shuffled = measure_shuffled_squares(
            model, sample.encoded, held, scores[held], params=params, n_repeats=n_repeats, rng=rng
        )
        rises[held] = shuffled - squares[held, None]
    spread = (sample.scores - sample.scores.mean()) ** 2
    return _summarise(squares, rises, spread, draw_times(sample, _N_RESAMPLES, rng))


def measure_shuffled_squares(
    model: Any,
    encoded: EncodedAttempts,
    rows: Ints,
    scores: Floats,
    *,
    params: Sequence[str],
    n_repeats: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the squared error of each row when one param's values are shuffled among them, the mean over repeats.

    All features of a param move together. Learning rates stay what they are relative to their optimizer's median when
    the optimizer is shuffled, and move to another optimizer as that when they are.

    Returns:
        Shape (n_rows, n_params).
    """
    matrix, n = encoded.matrix[rows], len(rows)
    squares = np.empty((n, len(params)))
    for i, param in enumerate(params):
        columns = encoded.columns_of(param, relative=True)
        order = rng.permuted(np.tile(np.arange(n), (n_repeats, 1)), axis=1).ravel()
        shuffled = np.tile(matrix, (n_repeats, 1))
        shuffled[:, columns] = matrix[order][:, columns]
        predicted = model.predict(encoded.restore_rates(shuffled)).reshape(n_repeats, n)
        squares[:, i] = ((scores - predicted) ** 2).mean(axis=0)
    return squares


def _summarise(squares: Floats, rises: Floats, spread: Floats, times: Ints) -> HeldOut:
    """Return R² and its drops, with intervals over resamples; `times` says how often each holds an attempt."""
    total = float(spread.sum())
    if not total > 0:
        nothing = np.zeros(rises.shape[1])
        return HeldOut(float("nan"), nothing, nothing, nothing)
    totals = times @ spread
    # A resample without any spread says nothing.
    drops = (times @ rises)[totals > 0] / totals[totals > 0, None]
    low, high = np.quantile(drops, [0.025, 0.975], axis=0)
    return HeldOut(1.0 - float(squares.sum()) / total, rises.sum(axis=0) / total, low, high)
