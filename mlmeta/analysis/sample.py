"""The attempts that a model of scores is fitted to: their features, their scores, resamples and folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.analysis.fanova import Factor
from mlmeta.analysis.features import EncodedAttempts, encode_attempts, list_making_params, score_ranks
from mlmeta.analysis.search import select_task
from mlmeta.errors import BadInputError, shorten
from mlmeta.history.table import FAILED, Floats, Ints, check_column, lower_is_better, read_scores

# Of seven real tasks, importances from 20 random attempts correlated with those from all 64 by 0.44 (the learning rate
# was among the first three in 71 % of the draws), from 30 by 0.60 (86 %), but from 10 by 0.19.
LEAST_ATTEMPTS = 20
# Beyond this a forest learns little more about main effects, and takes long.
MOST_ATTEMPTS = 2000
# More values of a param than this are represented by as many quantiles.
MOST_VALUES = 100
TREES_PER_FOREST = 10
_LEAST_COMMANDS = 20
_LEAST_LEAF, _MOST_LEAVES = 3, 30
_N_FOLDS = 5
# What depends on the task too, so that the same commands have another value of it on each.
_OF_TASK = "arch.n_parameters"


class TooFewAttemptsError(BadInputError):
    """There are too few attempts with a score to say which params matter."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Attempts with a score.

    Attributes:
        table: Their rows.
        encoded: Their features.
        scores: float64, shape (n,), finite.
        tasks: Index of each attempt's task, shape (n,).
        commands: Index of each attempt's commands but for the task, shape (n,): attempts that repeat others, on the
            same task or on another, have the same.
    """

    table: pd.DataFrame
    encoded: EncodedAttempts
    scores: Floats
    tasks: Ints
    commands: Ints

    @property
    def params(self) -> list[str]:
        """The encoded params, each once."""
        return list(dict.fromkeys(self.encoded.params))

    @property
    def n_tasks(self) -> int:
        """The number of tasks."""
        return int(self.tasks.max()) + 1

    @property
    def n_commands(self) -> int:
        """The number of unlike commands."""
        return int(self.commands.max()) + 1


def draw_sample(
    table: pd.DataFrame,
    metric: str,
    *,
    task: str | None,
    extra: str | None = None,
    as_ranks: bool = True,
    seed: int = 0,
) -> Sample:
    """Return the attempts that have a score, at most 2,000 of them, drawn with the seed.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        metric: The score.
        task: Name or digest of the one task to look at; None for all of them.
        extra: A param that is encoded beside those that `encode_attempts` chooses.
        as_ranks: Whether scores are rank quantiles within their task (`score_ranks`), higher is better. Otherwise
            they stay as they are, and a failed attempt has the worst one that is finite.
        seed: Decides which attempts are drawn.

    Raises:
        TooFewAttemptsError: If fewer than 20 attempts have a score to compare.
        NotFoundError: If there is no such task.
        BadInputError: If the table lacks the metric or the param.
    """
    if extra is not None:
        check_column(table, extra, what="param")
    chosen = select_task(table, task)
    scores = score_ranks(chosen, metric) if as_ranks else _fill_failed(chosen, metric)
    kept = np.flatnonzero(np.isfinite(scores))
    if len(kept) < LEAST_ATTEMPTS:
        raise TooFewAttemptsError(_explain_too_few(chosen, metric, task=task, n_kept=len(kept)))
    named = [*list_making_params(chosen), *([extra] if extra else [])]
    kept = kept[_find_order(chosen.iloc[kept], named, scores[kept])]
    if len(kept) > MOST_ATTEMPTS:
        kept = np.random.default_rng(seed).choice(kept, MOST_ATTEMPTS, replace=False)
    rows = chosen.iloc[kept].reset_index(drop=True)
    encoded = encode_attempts(rows.drop(columns=metric))
    if extra is not None and extra not in encoded.params:
        encoded = encode_attempts(rows, [*dict.fromkeys(encoded.params), extra])
    tasks = pd.factorize(rows["task"])[0].astype(np.int64) if task is None else np.zeros(len(rows), dtype=np.int64)
    return Sample(rows, encoded, scores[kept], tasks, _find_commands(encoded))


def _find_order(table: pd.DataFrame, params: Sequence[str], scores: Floats) -> Ints:
    """Return the order of attempts by what they are, shape (n,): that of the table may follow their random run ids."""
    told = pd.DataFrame({name: table[name] for name in ["task", *params] if name in table.columns}).assign(score=scores)
    return np.argsort(pd.util.hash_pandas_object(told, index=False).to_numpy(), kind="stable").astype(np.int64)


def _find_commands(encoded: EncodedAttempts) -> Ints:
    """Return the index of each attempt's commands; where there are fewer than 20, each attempt counts by itself.

    So few are a grid that somebody has laid out: others are not expected, and a resample would lack whole corners.
    """
    columns = [i for i, name in enumerate(encoded.params) if name != _OF_TASK]
    matrix = encoded.matrix[:, columns]
    commands = np.unique(matrix, axis=0, return_inverse=True)[1].ravel() if columns else np.zeros(len(matrix))
    return commands.astype(np.int64) if commands.max() + 1 >= _LEAST_COMMANDS else np.arange(len(matrix))


def _fill_failed(table: pd.DataFrame, metric: str) -> Floats:
    """Return the scores with the worst finite one for attempts that failed or whose score is infinitely bad."""
    values = read_scores(table, metric)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return values
    worst, best = (finite.max(), finite.min()) if lower_is_better(metric) else (finite.min(), finite.max())
    bad = np.inf if lower_is_better(metric) else -np.inf
    filled = np.where(table["status"].isin(FAILED) | (values == bad), worst, values)
    return np.where(filled == -bad, best, filled)


def _explain_too_few(table: pd.DataFrame, metric: str, *, task: str | None, n_kept: int) -> str:
    where = f"of the task {shorten(task)}" if task is not None else "that can be compared with others of their task"
    text = f"at least {LEAST_ATTEMPTS} attempts {where} need the score {shorten(metric)}; got {n_kept}"
    n_unknown = int(table["task"].isna().sum())
    return text + (f" ({n_unknown} more are of no known task)" if n_unknown and task is None else "")


def fit_forest(sample: Sample, rows: Ints, *, n_trees: int, seed: int, bootstrap: bool = True) -> Any:
    """Return a random forest fitted to some attempts.

    A leaf holds at least 3 attempts. Where commands are repeated it holds about two of them, or a thirtieth of all
    attempts if that is less: otherwise the forest would know each of them by heart. Splits are the best ones of half
    the features; random ones, as of extremely randomised trees, would make much of words and booleans, for which
    every split is the best one. `rows` may hold an attempt several times.
    """
    from sklearn.ensemble import RandomForestRegressor

    n = len(sample.scores)
    leaf = max(_LEAST_LEAF, min(round(2 * n / sample.n_commands), n // _MOST_LEAVES))
    matrix = sample.encoded.matrix[rows]
    n_tried = (matrix.shape[1] + 1) // 2
    forest = RandomForestRegressor(
        n_trees, min_samples_leaf=leaf, max_features=n_tried, bootstrap=bootstrap, random_state=seed
    )
    return forest.fit(matrix, sample.scores[rows])


def fit_resampled(sample: Sample, *, n_forests: int, seed: int) -> Iterator[Any]:
    """Yield small forests, each fitted to another resample: how much they differ says how sure an answer is."""
    rng = np.random.default_rng(seed)
    for times in draw_times(sample, n_forests, rng):
        rows = np.repeat(np.arange(len(times)), times)
        yield fit_forest(sample, rows, n_trees=TREES_PER_FOREST, seed=int(rng.integers(2**31)), bootstrap=False)


def draw_times(sample: Sample, n_resamples: int, rng: np.random.Generator) -> Ints:
    """Return how often each resample holds each attempt, shape (n_resamples, n).

    Commands are drawn with replacement, and of several tasks tasks too, independently (A. Owen, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1, 2007): an attempt comes as often as both do. A resample that would be
    empty holds every attempt once.
    """
    times = _draw_groups(sample.commands, n_resamples, rng)
    if sample.n_tasks > 1:
        times *= _draw_groups(sample.tasks, n_resamples, rng)
    times[~times.any(axis=1)] = 1
    return times


def _draw_groups(groups: Ints, n_resamples: int, rng: np.random.Generator) -> Ints:
    n_groups = int(groups.max()) + 1
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
    return drawn[:, groups].astype(np.int64)


def split_folds(sample: Sample, *, seed: int) -> list[tuple[Ints, Ints]]:
    """Return pairs of rows to fit to and rows held out, so that every attempt is held out once.

    Held out are tasks, a fifth of them at a time, or of one task commands. Commands that were tried on several tasks
    are held out with the tasks: a model that knew them from there would do well and could say nothing of others.
    """
    rng = np.random.default_rng(seed)
    by_task, by_commands = _assign_folds(sample.tasks, rng), _assign_folds(sample.commands, rng)
    if sample.n_tasks == 1:
        by_task = np.full(len(by_task), -1)
    elif sample.n_commands == len(sample.scores):
        by_commands = np.full(len(by_task), -1)
    pairs = []
    for task_fold, commands_fold in np.unique(np.stack([by_task, by_commands], axis=1), axis=0):
        other_task, other_commands = by_task != task_fold, by_commands != commands_fold
        fitted = (other_task | (task_fold < 0)) & (other_commands | (commands_fold < 0))
        pairs.append(
            (np.flatnonzero(fitted if fitted.any() else other_task), np.flatnonzero(~other_task & ~other_commands))
        )
    return pairs


def _assign_folds(groups: Ints, rng: np.random.Generator) -> Ints:
    """Return the fold of each attempt, 0 to 4, shape (n,); a group stays together, and folds are of like size."""
    sizes = np.bincount(groups)
    fold_of, filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(min(_N_FOLDS, len(sizes)))
    shuffled = rng.permutation(len(sizes))
    # The largest first, each to the fold with the fewest attempts.
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = np.argmin(filled)
        filled[fold_of[group]] += sizes[group]
    return fold_of[groups]


def make_factors(encoded: EncodedAttempts) -> list[Factor]:
    """Return the params as independent inputs, each with the values that the attempts have, or 100 quantiles of them.

    The features of one param vary together, as in the attempts. Learning rates are drawn relative to their optimizer's
    median (`EncodedAttempts.joined`): each optimizer has its own range of them, so that this, and not the learning rate
    itself, can be taken as independent of the optimizer.
    """
    columns = {param: encoded.columns_of(param, relative=True) for param in dict.fromkeys(encoded.params)}
    values = {param: _collect_values(encoded.matrix[:, own]) for param, own in columns.items()}
    factors = [
        Factor(columns[param], rows, weights, {param: np.arange(len(rows))})
        for param, (rows, weights) in values.items()
        if param not in encoded.joined
    ]
    if encoded.joined:
        (rates, shares), (optimizers, other_shares) = (values[param] for param in encoded.joined)
        factors.append(join_rates(encoded, rates, optimizers, np.outer(shares, other_shares), relative=True))
    return factors


def _collect_values(features: Floats) -> tuple[Floats, Floats]:
    """Return the distinct rows and their shares; of too many, quantiles in the order of the columns."""
    rows, counts = np.unique(features, axis=0, return_counts=True)
    if len(rows) <= MOST_VALUES:
        return rows, counts / counts.sum()
    levels = (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES
    places = np.searchsorted(np.cumsum(counts) / counts.sum(), levels)
    return rows[places], np.full(MOST_VALUES, 1 / MOST_VALUES)


def join_rates(
    encoded: EncodedAttempts, rates: Floats, optimizers: Floats, weights: Floats, *, relative: bool
) -> Factor:
    """Return a learning rate and its optimizer as one factor, with a row for each pair of their values.

    Args:
        encoded: The attempts.
        rates: The features of k learning rates, as they are or relative to their optimizer's median.
        optimizers: The features of l optimizers.
        weights: The probability of each pair, shape (k, l).
        relative: Which of the two `rates` are.
    """
    rate, optimizer = encoded.joined
    places, other_places = (grid.ravel() for grid in np.indices(weights.shape))
    matrix = np.zeros((weights.size, len(encoded.names)))
    matrix[:, encoded.columns_of(rate, relative=relative)] = rates[places]
    matrix[:, encoded.columns_of(optimizer)] = optimizers[other_places]
    matrix = encoded.restore_rates(matrix) if relative else encoded.relate_rates(matrix)
    columns = np.flatnonzero(np.isin(encoded.params, encoded.joined))
    return Factor(columns, matrix[:, columns], weights.ravel(), {rate: places, optimizer: other_places})
