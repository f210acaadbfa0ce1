"""Which attempts are best: by one number, or by two that pull in opposite directions.

`compare_table` puts attempts side by side: one column an attempt, one row for each thing in which they differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mlmeta.analysis.search import find_attempts, find_name, find_numbers, list_differing, select_task
from mlmeta.errors import BadInputError
from mlmeta.history.table import FACTS, ColumnValues, holds_numbers, is_cut, is_numeric, lower_is_better

MAX_ATTEMPTS = 100
# More values than this are no choice to rank.
_MOST_RANKED = 20
# The numbers of a param while its best values are sought: no column of a store has this name.
_NUMBERS = "\0numbers"
# A param of a layer: which one, and what of it.
_OF_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)")
_Layer: TypeAlias = dict[str, Any]
# Numbers of a run that are no goal: none of them is the best.
_NO_GOALS = ("learning_rate", "epoch")


def direction(metric: str) -> str:
    """Return "minimize" for a metric whose name speaks of loss, seconds, duration or error, else "maximize"."""
    return "minimize" if lower_is_better(metric) else "maximize"


def rank_attempts(
    table: pd.DataFrame, task: str | None = None, *, metric: str = "accuracy", limit: int | None = 20
) -> pd.DataFrame:
    """Return the best attempts, the best first.

    The metric's name says whether lower is better. The task is named, or told by its digest; None is for all tasks,
    whose scores mean different things.

    Returns:
        `rank` (int64, from 1; equal scores share the better rank), `FACTS`, the params in which these attempts
        differ, and the metric. Attempts without the metric are left out.

    Raises:
        NotFoundError: If there is no such task or metric; names the nearest.
        BadInputError: If the metric holds no numbers.
    """
    metric = find_numbers(table, metric)
    found = select_task(table, task)
    scores = found[metric].astype("float64").dropna()
    ranks = scores.rank(method="min", ascending=lower_is_better(metric)).astype("int64")
    order = pd.DataFrame({"rank": ranks, "started": found["started"]}).loc[ranks.index]
    best = order.sort_values(["rank", "started"], kind="stable").iloc[:limit]
    chosen = found.loc[best.index]
    ranked = _choose_columns(chosen, metric)
    ranked.insert(0, "rank", best["rank"])
    return ranked.reset_index(drop=True)


def find_best_values(table: pd.DataFrame, param: str, *, metric: str = "accuracy", share: float = 0.25) -> pd.DataFrame:
    """Return which values of a param worked on which tasks: where the better attempts of each task lie.

    The metric's name says whether lower is better. The better ones are a `share` of a task's attempts, 0 to 1, and at
    least one.

    Returns:
        One row a task: `task`, `n_attempts` (with both param and metric), `best_score`, `best_value` (the best
        attempt's), and of the better ones `low` and `high` (the 10 % and 90 % quantile of a param of numbers), or
        `common` (the names and how often each, of any other).

    Raises:
        NotFoundError: If there is no such param or metric; names the nearest.
        BadInputError: If the metric holds no numbers.
    """
    metric, param = find_numbers(table, metric), find_name(table, param)
    as_numbers = holds_numbers(table[param])
    if as_numbers:
        table = table.assign(**{_NUMBERS: ColumnValues(param, table[param]).numbers.astype(np.float64)})
    known = table[table[metric].notna() & table[param].notna() & table["task"].notna()]
    # Of equal scores the first name counts, so that the answer does not hang on when the attempts were made.
    known = known.sort_values([metric, "model_name"], ascending=[lower_is_better(metric), True], kind="stable")
    rows = [_describe_best(task, group, param, metric, share) for task, group in known.groupby("task", sort=True)]
    spread = ["low", "high"] if as_numbers else ["common"]
    return pd.DataFrame(rows, columns=["task", "n_attempts", "best_score", "best_value", *spread])


def _describe_best(task: object, group: pd.DataFrame, param: str, metric: str, share: float) -> dict[str, object]:
    values = group[param].head(max(1, round(share * len(group))))
    row = {"task": task, "n_attempts": len(group), "best_score": group[metric].iloc[0], "best_value": values.iloc[0]}
    if _NUMBERS in group:
        low, high = group[_NUMBERS].head(len(values)).quantile([0.1, 0.9])
        return row | {"low": low, "high": high}
    return row | {"common": ", ".join(f"{name} {count}" for name, count in values.value_counts().items())}


def rank_values(table: pd.DataFrame, param: str, *, metric: str = "accuracy") -> list[str]:
    """Return in words how the values of a param compare over tasks: the mean of their ranks, 1 the best.

    Within a task a value is ranked by its best attempt. The interval holds 95 % of the means of 2,000 resamples of the
    tasks; of a single task there is none. A param with one value, or more than 20, says nothing.

    Raises:
        NotFoundError: If there is no such param or metric; names the nearest.
        BadInputError: If the metric holds no numbers.
    """
    metric, param = find_numbers(table, metric), find_name(table, param)
    lower = lower_is_better(metric)
    known = table[[metric, param, "task"]].dropna().astype({param: "str"})
    if not 2 <= known[param].nunique() <= _MOST_RANKED:
        return []
    best = known.groupby(["task", param])[metric].agg("min" if lower else "max").astype("float64").unstack()
    ranks = best[best.notna().sum(axis=1) > 1].rank(axis=1, ascending=lower)
    rng = np.random.default_rng(0)
    lines = []
    for value in ranks.mean().dropna().sort_values(kind="stable").index:
        own = ranks[value].dropna().to_numpy()
        means = rng.choice(own, (2000, len(own))).mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        words = f" ({low:.2f} to {high:.2f})" if len(own) > 1 else ""
        lines.append(f"{value}: mean rank {own.mean():.2f}{words} on {len(own)} task{'' if len(own) == 1 else 's'}")
    return lines


def select_pareto_front(
    table: pd.DataFrame, maximize: str = "accuracy", minimize: str = "duration_s", *, task: str | None = None
) -> pd.DataFrame:
    """Return the attempts that no other beats: more of one number would cost more of the other.

    An attempt is left out where another one has at least as much of `maximize` for at most as much of `minimize`
    and is better in one of them. The task is named, or told by its digest; None is for all tasks.

    Returns:
        `FACTS`, the params in which these attempts differ, and the two columns, sorted by `minimize`.

    Raises:
        NotFoundError: If there is no such task or column; names the nearest.
        BadInputError: If a column holds no numbers.
    """
    gain, cost = find_numbers(table, maximize), find_numbers(table, minimize)
    found = select_task(table, task)
    front = find_pareto_front(found[gain], found[cost])
    return _choose_columns(found.loc[front], gain, cost).reset_index(drop=True)


def find_pareto_front(gain: pd.Series[Any], cost: pd.Series[Any]) -> pd.Index[Any]:
    """Return, by rising cost, the points that no other beats: as much gain for as little cost, and better in one."""
    points = pd.DataFrame({"gain": gain.astype("float64"), "cost": cost.astype("float64")}).dropna()
    points = points.sort_values(["cost", "gain"], ascending=[True, False], kind="stable")
    best = points.groupby("cost")["gain"].max()
    below = points["cost"].map(best.cummax().shift())
    return points.index[(points["gain"] == points["cost"].map(best)) & ~(points["gain"] <= below)]


def _choose_columns(chosen: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    params = [name for name in list_differing(chosen, kind="param") if name not in metrics]
    names = [*FACTS, *params, *metrics]
    result = chosen[list(dict.fromkeys(names))].copy()
    result.attrs = chosen.attrs
    return result


def compare_table(
    table: pd.DataFrame, names: Sequence[str], *, metric: str = "accuracy", all_columns: bool = False
) -> pd.DataFrame:
    """Return attempts side by side, the one with the best metric first.

    Args:
        table: Attempts.
        names: Two or more attempts by run id, by the beginning of one, or by name.
        metric: What decides the order; its row is always there. Where no attempt at all has an accuracy, they stand
            as they were named.
        all_columns: Also what all of them have in common.

    Returns:
        `field`; one column an attempt, named as it is (with the beginning of its run id where names are equal); and
        `best`, the name of the column with the best value in rows of metrics and of `duration_s`, missing where all
        are equal. Cells hold Python values, None where one is missing. Rows are facts, metrics, params. Layers stand
        beside those that they match; see `_align_layers`.

    Raises:
        NotFoundError: If there is no such attempt or metric; names the nearest.
        BadInputError: If fewer than 2 or more than 100 attempts are named, or a run id is not clear.
    """
    ordering = [find_numbers(table, metric)] if metric != "accuracy" or metric in table.columns else []
    chosen = find_attempts(table, names)
    if not 2 <= len(chosen) <= MAX_ATTEMPTS:
        raise BadInputError(f"2 to {MAX_ATTEMPTS} different attempts can be compared; got {len(chosen)}")
    for name in ordering:
        chosen = chosen.sort_values(name, ascending=lower_is_better(name), kind="stable", na_position="last")
    kinds = table.attrs.get("kinds", {})
    fields = [*FACTS, "experiment"] + [f for kind in ("metric", "param") for f in table.columns if kinds.get(f) == kind]
    rows = {name: [_plain(value) for value in chosen[name]] for name in fields if name in table.columns}
    rows = _align_layers(rows)
    always = {"run_id", *ordering}
    # Values that were cut may differ in what is lost.
    differ = {name for name, values in rows.items() if len(set(values)) > 1 or any(map(is_cut, values))}
    shown = {name: values for name, values in rows.items() if all_columns or name in always | differ}
    attempts = _name_attempts(chosen)
    result = pd.DataFrame.from_dict(shown, orient="index", columns=attempts, dtype=object)
    goals = {name for name in shown if kinds.get(name) == "metric" and name not in _NO_GOALS} | {"duration_s"}
    goals = {name for name in goals & shown.keys() if is_numeric(table[name])}
    best = [_find_best(values, name, attempts) if name in goals else None for name, values in shown.items()]
    result.insert(0, "field", list(shown))
    result.insert(len(result.columns), "best", pd.Series(best, dtype=object).to_numpy())
    return result.reset_index(drop=True)


def _align_layers(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the rows with those of the layers in one place, each attempt's layers beside the ones that they match.

    Layers are matched as difflib's SequenceMatcher matches lines, by their names alone, or first by all that they say:
    whichever leaves fewer rows that differ. A layer that all attempts have keeps a row for each param. One that some
    lack, or have another in place of, is one row, ``model.layers.4``, with the whole layer in each cell. Numbers are
    those of the first attempt; what it lacks is ``model.layers.3+1``, the first one after its layer 3.
    """
    parts = {name: match for name in rows if (match := _OF_LAYER.fullmatch(name))}
    n_attempts = len(next(iter(rows.values())))
    stacks: list[dict[int, _Layer]] = [{} for _ in range(n_attempts)]
    for name, match in parts.items():
        for stack, value in zip(stacks, rows[name], strict=True):
            if value is not None:
                stack.setdefault(int(match[1]), {})[match[2]] = value
    layers = [[stack[place] for place in sorted(stack)] for stack in stacks]
    ways = [_list_layer_rows(_match_layers(layers, keys)) for keys in ((_name_layer,), (_write_layer, _name_layer))]
    aligned = min(ways, key=lambda way: sum(len(set(values)) > 1 for values in way.values()))
    others = [name for name in rows if name not in parts]
    first = next((place for place, name in enumerate(rows) if name in parts), len(others))
    before, after = others[:first], others[first:]
    return {name: rows[name] for name in before} | aligned | {name: rows[name] for name in after}


def _match_layers(stacks: Sequence[list[_Layer]], keys: Sequence[Callable[[_Layer], str]]) -> list[list[_Layer | None]]:
    """Return what stands beside each other: a row for each layer, with one for each attempt, or None."""
    merged: list[list[_Layer | None]] = [[layer] for layer in stacks[0]]
    for n_before, stack in enumerate(stacks[1:], start=1):
        pairs = _pair(merged, stack, keys)
        merged = [[*(row or [None] * n_before), layer] for row, layer in pairs]
    return merged


def _pair(
    rows: Sequence[list[_Layer | None]], stack: Sequence[_Layer], keys: Sequence[Callable[[_Layer], str]]
) -> Iterator[tuple[list[_Layer | None] | None, _Layer | None]]:
    """Yield rows and layers that belong together; the first key matches, the next one what is left between."""
    if not keys:
        yield from zip_longest(rows, stack)
        return
    known = [keys[0](next(layer for layer in row if layer is not None)) for row in rows]
    matcher = SequenceMatcher(None, known, [keys[0](layer) for layer in stack], autojunk=False)
    for tag, i, end_i, j, end_j in matcher.get_opcodes():
        yield from _pair(rows[i:end_i], stack[j:end_j], () if tag == "equal" else keys[1:])


def _list_layer_rows(merged: Sequence[list[_Layer | None]]) -> dict[str, list[Any]]:
    """Return field → the attempts' values, in the order of the layers."""
    rows: dict[str, list[Any]] = {}
    place, n_after = -1, 0
    for layers in merged:
        place, n_after = (place, n_after + 1) if layers[0] is None else (place + 1, 0)
        field = f"model.layers.{place if place >= 0 else ''}{f'+{n_after}' if n_after else ''}"
        known = [layer for layer in layers if layer is not None]
        if len(known) < len(layers) or len(set(map(_name_layer, known))) > 1:
            rows[field] = [None if layer is None else _write_layer(layer) for layer in layers]
            continue
        for key in dict.fromkeys(key for layer in known for key in layer):
            rows[f"{field}.{key}"] = [layer.get(key) for layer in known]
    return rows


def _name_layer(layer: _Layer) -> str:
    """Return a layer's name, with those of the layers in it."""
    return " ".join(str(value) for key, value in layer.items() if key.rpartition(".")[2] == "name")


def _write_layer(layer: _Layer) -> str:
    """Return a layer on one line: ``Conv2d(kernel_size=3, out_channels=16)``."""
    arguments = ", ".join(f"{key}={value}" for key, value in layer.items() if key != "name")
    return f"{layer.get('name', '')}({arguments})"


def _name_attempts(chosen: pd.DataFrame) -> list[str]:
    names = ["" if pd.isna(name) else str(name) for name in chosen["model_name"]]
    return [
        f"{name} ({run_id[:8]})".strip() if names.count(name) > 1 or name in ("", "field", "best") else name
        for name, run_id in zip(names, chosen["run_id"], strict=True)
    ]


def _plain(value: Any) -> Any:
    """Return a cell as a Python value, None where it is missing."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _find_best(values: Sequence[Any], field: str, attempts: Sequence[str]) -> str | None:
    """Return the attempt with the best value; None where all are equal, or only one has any."""
    sign = -1.0 if lower_is_better(field) else 1.0
    scores = [-math.inf if value is None else sign * float(value) for value in values]
    best = max(scores)
    is_shared = scores.count(best) == len(scores)
    return None if is_shared or sum(value is not None for value in values) < 2 else attempts[scores.index(best)]
