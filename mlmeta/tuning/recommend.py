"""What to try next on a task, why, and how good it should be.

Past winners on other tasks, variations of them, the shipped defaults, the commands as given and draws of their search
space are fitted to the new task's pictures; those that fit are ranked by `mlmeta.tuning.surrogate`, which has seen all
past attempts, those on this task and those that come with mlmeta. Several at once are chosen one after the other, each
as if the ones before had been tried (Desautels et al., Parallelizing Exploration-Exploitation Tradeoffs in GP Bandit
Optimization, 2014).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.analysis.task_similarity import NEW_TASK
from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import read_training
from mlmeta.commands.search_space import is_open, read_space
from mlmeta.errors import BadInputError
from mlmeta.history.table import FAILED, list_params, read_numbers
from mlmeta.tuning.lessons import FINISHED, STD_COLUMN
from mlmeta.tuning.new_task import NewTask, explain_unfit, fit_proposals, look_at_task
from mlmeta.tuning.proposals import (
    Proposal,
    choose_space,
    digest_training,
    draw_proposals,
    find_winners,
    keep_in_space,
    number_name,
    read_defaults,
    take_training,
    vary,
    write_commands,
)
from mlmeta.tuning.surrogate import Prediction, Surrogate
from mlmeta.tuning.training_features import describe_trainings

_LOG = logging.getLogger(__name__)
N_EVIDENCE = 3
# Similar attempts whose durations say how long one takes.
_N_TIMED = 10
# Trainings nearer to each other than this would hardly differ in what they reach: it is a factor of 1.45 in the
# learning rate alone, at which the surrogate sees a correlation of 0.99.
SAME = 0.1


@dataclass(frozen=True)
class Evidence:
    """A past attempt that a recommendation rests on.

    Attributes:
        distance: Of its task from the new one, 0 to 1; NaN where it is not known.
        score: NaN where it failed.
    """

    run_id: str
    model_name: str
    task: str
    distance: float
    score: float


@dataclass(frozen=True)
class Recommendation:
    """Commands to try next.

    Attributes:
        commands: Complete and valid; the model is known to fit the pictures.
        score_mean: The score to be expected; NaN where nothing is known.
        score_std: Its standard deviation.
        seconds: The duration to be expected; NaN where nothing is known.
        evidence: The past attempts that say most about it.
        reason: One sentence.
    """

    commands: TrainCommands
    score_mean: float
    score_std: float
    seconds: float
    evidence: tuple[Evidence, ...]
    reason: str


def recommend_commands(
    commands: TrainCommands,
    *,
    base_dir: Path | None = None,
    history: pd.DataFrame | None = None,
    candidates: Sequence[TrainCommands] | None = None,
    n: int = 5,
    metric: str = "accuracy",
    seed: int = 0,
) -> list[Recommendation]:
    """Return what to try next on the task of some commands, the best first.

    Args:
        commands: Say what the task is: pictures, labels, picture operations, transforms, epochs.
        base_dir: What relative paths of the commands are relative to; None for the working folder.
        history: The table of `mlmeta.history.loading.load_attempts`; None to read it.
        candidates: Choose among these only; each is trained as it says, on the task of `commands`.
        n: At most so many; fewer where everything in the search space was tried.
        metric: The score; its name says whether lower is better.
        seed: Decides the variations.

    Raises:
        BadInputError: If the commands or their pictures cannot be used, the metric is none, or nothing that might be
            tried fits the pictures.
        MlmetaError: If the history cannot be read.
    """
    if n < 1 or seed < 0:
        raise BadInputError(f"recommend: n must be 1 or above and seed 0 or above; got {n} and {seed}")
    if candidates is not None and not candidates:
        return []
    task = look_at_task(commands, base_dir or Path(), history, metric)
    n_known = len(task.past) + len(task.own)
    if n_known and not task.n_scored(metric):
        _LOG.warning("mlmeta: none of %s past attempts has the metric %r to learn from", f"{n_known:,}", metric)
    given = [Proposal(take_training(one), f"the candidate {one.model_name}", candidate=one) for one in candidates or ()]
    is_cold = not (n_known or given) and is_open(commands.space)
    wanted = given or list(_propose(task, metric, np.random.default_rng(seed)))
    proposals, rows = fit_proposals(task, wanted, at_most=n if is_cold else None)
    if not proposals:
        _refuse_unfit(task, wanted, are_candidates=bool(given))
        return []
    _tell_unfit(task, [one for one in given if one not in proposals])
    fresh, nearest = _find_fresh(task, pd.DataFrame(rows), keep_all=bool(given))
    new, proposals = pd.DataFrame([rows[row] for row in fresh]), [proposals[row] for row in fresh]
    surrogate = _make_surrogate(task, new, metric, seed)
    # The default list is a portfolio: its later trainings are for tasks that the first ones do not suit.
    chosen = list(range(len(new))) if is_cold else surrogate.choose(n, len(new))
    predicted = surrogate.predict()
    told = enumerate(chosen, start=1)
    return [_explain(task, proposals[row], row, surrogate, predicted, metric, rank, nearest[row]) for rank, row in told]


def _tell_unfit(task: NewTask, left_out: Sequence[Proposal]) -> None:
    for one in left_out:
        why = explain_unfit(task, one)
        _LOG.warning("mlmeta: %s cannot be built for these pictures and is left out: %s", one.origin, why)


def judge_attempts(commands: TrainCommands, *, base_dir: Path) -> dict[str, float]:
    """Return what every attempt on the task of some commands should be worth, by its own score so far and all others.

    After a few epochs a score is hardly more than chance where there are few validation pictures; what is known of
    attempts like it then says more.

    Returns:
        By run id, a normal quantile among attempts on the task, higher is better.

    Raises:
        BadInputError: If the commands or their pictures cannot be used.
        MlmetaError: If the history cannot be read.
    """
    task = look_at_task(commands, base_dir, None, "accuracy")
    if not len(task.own):
        return {}
    worth = _make_surrogate(task, task.own.iloc[:0], "accuracy", seed=0).predict().z
    return dict(zip(task.own["run_id"], worth.tolist(), strict=True))


def _refuse_unfit(task: NewTask, wanted: Sequence[Proposal], *, are_candidates: bool) -> None:
    """Say why nothing can be built; where attempts on the task were made, those were all that could be.

    Raises:
        BadInputError: If it is no wonder that nothing was made.
    """
    if not wanted or (len(task.own) and not are_candidates):
        return
    what = "candidates: none of them" if are_candidates else f"space: none of {len(wanted)} trainings drawn from it"
    raise BadInputError(f"{what} can be built for these pictures: {explain_unfit(task, wanted[0])}")


def _make_surrogate(task: NewTask, new: pd.DataFrame, metric: str, seed: int) -> Surrogate:
    """Return a surrogate of proposals and, after them, of the attempts on the task, whose scores it has taken in."""
    own = task.own.reset_index(drop=True)
    table = pd.concat([new, own], ignore_index=True) if len(own) else new
    table.attrs = {"kinds": task.own.attrs.get("kinds") or {}}
    surrogate = Surrogate(task.past, table, task.tasks, NEW_TASK, metric=metric, seed=seed, shipped=task.shipped)
    lessons = zip(own[metric], own[STD_COLUMN], own["status"], strict=True) if len(own) else ()
    for place, (score, std, status) in enumerate(lessons, start=len(new)):
        failed = status in FAILED
        # One that nobody knows a score of is no failure: it says nothing.
        if failed or np.isfinite(score):
            surrogate.observe(place, None if failed else float(score), std=float(std))
    return surrogate


def _find_fresh(
    task: NewTask, new: pd.DataFrame, *, keep_all: bool
) -> tuple[list[int], Sequence[pd.Series[Any] | None]]:
    """Return the rows that repeat no attempt on the task, all where each does one, and the attempt nearest to each."""
    rows, own = list(range(len(new))), task.own.reset_index(drop=True)
    if not len(own):
        return rows, [None] * len(rows)
    points = describe_trainings(pd.concat([new, own.assign(task=NEW_TASK)], ignore_index=True), task.tasks)
    apart = np.linalg.norm(points[: len(new), None] - points[len(new) :], axis=2)
    if not keep_all:
        rows = [int(row) for row in np.flatnonzero(apart.min(axis=1) > SAME)] or rows
    return rows, [own.iloc[int(place)] for place in apart[rows].argmin(axis=1)]


def _propose(task: NewTask, metric: str, rng: np.random.Generator) -> Iterator[Proposal]:
    """Yield what might be tried, each once: without a past the defaults first, then the commands themselves."""
    winners = find_winners(task.past, metric, dict(-task.distances)) if len(task.past) else []
    best_here = find_winners(task.own.assign(task="this task"), metric, {}) if len(task.own) > 1 else []
    known = [*best_here, *winners]
    given = take_training(task.commands)
    as_given = Proposal(given, "the commands as they are")
    found = [*known, *read_defaults(), as_given, *vary(known or read_defaults(), rng)]
    if task.commands.space:
        opened = is_open(task.commands.space)
        found = list(keep_in_space(found, given, read_space(task.commands.space), rng, opened=opened))
    found += draw_proposals(given, choose_space(task.commands, task.past), rng)
    if task.commands.initial_weights not in (None, "auto"):
        # Weights that the commands name fit the model that the commands have.
        found = [replace(one, training={**one.training, "model": given["model"]}) for one in found]
    params = list_params(task.own)
    tried = {digest_training(read_training(task.own.iloc[i], params)) for i in range(len(task.own))}
    for proposal in found:
        digest = digest_training(proposal.training)
        if digest not in tried:
            tried.add(digest)
            yield proposal


def _explain(
    task: NewTask, proposal: Proposal, row: int, surrogate: Surrogate, predicted: Prediction, metric: str, rank: int,
    near: pd.Series[Any] | None,
) -> Recommendation:  # fmt: skip
    commands = write_commands(task.commands, proposal, number_name(task.commands.model_name, rank))
    past, similar, distances = surrogate.past, surrogate.find_evidence(row, 10 * _N_TIMED), task.distances
    # What it is taken from first, then what the surrogate goes by.
    place_of = {run_id: place for place, run_id in enumerate(past["run_id"] if len(past) else ())}
    sources = [place_of[run_id] for run_id in proposal.run_ids if run_id in place_of]
    telling = [past.iloc[place] for place in list(dict.fromkeys([*sources, *similar]))[:N_EVIDENCE]]
    found = [_make_evidence(one, float(distances.get(one["task"], np.nan)), metric) for one in telling]
    evidence = tuple((found if near is None else [_make_evidence(near, 0.0, metric), *found])[:N_EVIDENCE])
    seconds = _expect_seconds(task, past.iloc[similar])
    mean, std = float(predicted.mean[row]), float(predicted.std[row])
    why, doubt = _say_why(task, proposal, evidence, metric), surrogate.explain_doubt(row)
    why += f" Warning: nothing like it was tried without failing; the nearest is away {doubt}." if doubt else ""
    return Recommendation(commands, mean, std, seconds, evidence, why)


def _make_evidence(attempt: pd.Series[Any], distance: float, metric: str) -> Evidence:
    score = float(attempt[metric]) if pd.notna(attempt[metric]) and attempt["status"] not in FAILED else np.nan
    return Evidence(str(attempt["run_id"]), str(attempt["model_name"]), str(attempt["task"]), distance, score)


def _say_why(task: NewTask, proposal: Proposal, evidence: Sequence[Evidence], metric: str) -> str:
    n_past, n_own = len(task.past), len(task.own)
    if not n_past and not n_own:
        return f"There is no past attempt of yours to learn from: this is {proposal.origin}."
    n_shipped, n_tasks = len(task.shipped.attempts), task.past["task"].nunique() if n_past else 0
    own = f" and {n_own} on this task" if n_own else ""
    own += f", beside {n_shipped} that come with mlmeta" if n_shipped else ""
    near = ""
    if evidence:
        one = evidence[0]
        distance = "" if np.isnan(one.distance) else f" (distance {one.distance:.2f})"
        result = "failed" if np.isnan(one.score) else f"reached {metric} {one.score:.3g}"
        near = f"; {one.model_name} on {one.task}{distance} {result}"
    past = f"{n_past} attempt{'s'[: n_past != 1]} on {n_tasks} other task{'s'[: n_tasks != 1]}"
    return f"From {proposal.origin}: best by {past}{own}{near}."


def _expect_seconds(task: NewTask, similar: pd.DataFrame) -> float:
    """Return the seconds that similar attempts took to their end, in proportion to pixels and epochs."""
    similar = similar[similar["status"].isin(FINISHED)].head(_N_TIMED) if len(similar) else similar
    if not len(similar):
        return math.nan
    seconds = similar["duration_s"].to_numpy(dtype=np.float64, na_value=np.nan)
    here = {f"task.{name}": float(task.counts[name]) for name in ("n_train", "height", "width")}
    here["n_epoch"] = float(task.commands.n_epoch)
    for name, value in here.items():
        there = read_numbers(similar, name)
        seconds = seconds * (value / np.where(there > 0, there, value))
    known = seconds[np.isfinite(seconds) & (seconds > 0)]
    return float(np.median(known)) if known.size else math.nan
