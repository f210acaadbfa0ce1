"""Which tasks are alike, by their pictures and by the words of their labels.

Notation: x, y the values of one meta-feature of two tasks, s its scale, A, B the word sets of their labels.

    pictures = mean over the meta-features that both tasks have of |x - y| / s
    words    = 1 - |A ∩ B| / (|A| + |B| - |A ∩ B|)                         (Jaccard distance)
    distance = (pictures + words) / 2, or pictures alone where a task's labels are not known

All lie between 0 and 1. s is the range of x over all tasks, and no less than a tenth of the feature's own range: a
history of two tasks that are nearly equal would else call them as unlike as can be.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import cdist

from mlmeta.analysis.search import find_task
from mlmeta.commands.documents import strip_operators
from mlmeta.commands.parsing import load_train_commands
from mlmeta.data.metafeatures import META_FEATURES
from mlmeta.errors import NotFoundError, shorten, suggest
from mlmeta.history.table import Floats, lower_is_better, read_numbers

NEW_TASK = "new task"
TASK_COLUMNS = ("task", "task_digest", "n_attempts", "best_score", "label_names", *META_FEATURES)
RANK_COLUMNS = ("task", "distance", "pictures", "words", "alike", "terms", "disagrees", "n_attempts", "best_score")
# The columns of attempts that describe their task.
_READ = ("tags.mlmeta.task_digest", "label_names", "tags.mlmeta.task", "task.n_train", "task.n_labels")
_N_TERMS = 3
_ALIKE = 0.1
_LARGEST = 1e300
_LEAST_SHARE = 0.1
_WORD = re.compile(r"[^\W_]+")
# Of a list that was cut to MLflow's limit: all that is whole.
_CUT = re.compile(r'^(\[.*"), ".*…$', re.DOTALL)
_N_STEPS = 300


def task_table(table: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """Return one row for each task with a name, in the order in which the attempts come.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        metric: The score; its name says whether lower is better. No attempt need have it.

    Returns:
        Columns `TASK_COLUMNS`: task, task_digest, n_attempts, best_score (NaN without a finite one), label_names (a
        tuple, empty where they are not known), and the meta-features, float64, NaN where they are not known. What
        an attempt lacks is taken from the others of its task.
    """
    # pandas copies every column of every task, and what the table knows of them.
    needed = [name for name in ("task", metric, *_READ) if name in table.columns]
    known = table.loc[table["task"].notna(), list(dict.fromkeys(needed))]
    known.attrs = {}
    groups = known.groupby("task", sort=False)
    rows = [_describe_task(str(task), attempts, metric) for task, attempts in groups]
    return _make_tasks(rows)


def describe_new_task(
    features: Mapping[str, float], label_names: Sequence[str], *, task: str = NEW_TASK
) -> pd.DataFrame:
    """Return a task that nothing has been tried on as a row to put below those of `task_table`.

    Args:
        features: Its meta-features (`mlmeta.data.metafeatures.describe_pictures`); those that are left out are missing.
        label_names: Its labels; query operators such as ``imagesize:500x500`` are no words.
        task: What it is to be called.
    """
    row = {"task": task, "task_digest": None, "n_attempts": 0, "best_score": np.nan, "label_names": tuple(label_names)}
    return _make_tasks([row | _keep_known(features)])


def task_distances(tasks: pd.DataFrame) -> pd.DataFrame:
    """Return the distance of each task to each, float64, 0 to 1, tasks as index and columns.

    Args:
        tasks: As `task_table` gives them.

    Returns:
        NaN for two tasks that have no meta-feature in common.
    """
    values, scales, words = _read_tasks(tasks)
    rows = [_average(*_compare(values, scales, words, i)[1:]) for i in range(len(tasks))]
    names = [str(name) for name in tasks["task"]]
    return pd.DataFrame(np.array(rows).reshape(len(names), len(names)), index=names, columns=names)


def rank_similar_tasks(tasks: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return all other tasks, the most alike first.

    Args:
        tasks: As `task_table` gives them, with `describe_new_task` below them for a task that is new.
        name: The task to compare with; of two tasks of one name the last one.

    Returns:
        Columns `RANK_COLUMNS`: task, distance, pictures and words (its two parts), alike (what makes it near: words
        that both have, at most three, and the meta-features that differ least, at most three and by no more than a
        tenth of their scale), terms (the three meta-features that differ most: value here, value there, difference by
        scale), disagrees (one of pictures and words says
        near, the lowest third of these tasks, and the other far, the highest third), n_attempts, best_score. Where
        nothing can be compared a distance is NaN; such tasks come last.

    Raises:
        NotFoundError: If there is no such task.
    """
    names = [str(task) for task in tasks["task"]]
    if name not in names:
        raise NotFoundError(f"there is no task {shorten(name)}{suggest(name, names)}")
    place = len(names) - 1 - names[::-1].index(name)
    values, scales, words = _read_tasks(tasks)
    terms, pictures, by_words = _compare(values, scales, words, place)
    ranked = pd.DataFrame(
        {
            "task": names,
            "distance": _average(pictures, by_words),
            "pictures": pictures,
            "words": by_words,
            "alike": [_name_alike(terms[i], words[place] & words[i]) for i in range(len(names))],
            "terms": [_explain(values[place], values[i], terms[i]) for i in range(len(names))],
            "disagrees": False,
            "n_attempts": tasks["n_attempts"].to_numpy(),
            "best_score": tasks["best_score"].to_numpy(),
        }
    ).drop(index=place)
    ranked["disagrees"] = _disagree(ranked["pictures"].to_numpy(), ranked["words"].to_numpy())
    return ranked.sort_values(["distance", "words"], kind="stable", ignore_index=True)


def _describe_task(task: str, attempts: pd.DataFrame, metric: str) -> dict[str, Any]:
    scores = read_numbers(attempts, metric)
    finite = scores[np.isfinite(scores)]
    best = (finite.min() if lower_is_better(metric) else finite.max()) if finite.size else np.nan
    digests = _read_texts(attempts, "tags.mlmeta.task_digest")
    labels = [labels for text in _read_texts(attempts, "label_names") if (labels := _read_labels(text))]
    features: dict[str, float] = {}
    for text in _read_texts(attempts, "tags.mlmeta.task"):
        features = _keep_known(_read_json(text)) | features
    features = _count(attempts) | features
    return {
        "task": task,
        "task_digest": digests[0] if digests else None,
        "n_attempts": len(attempts),
        "best_score": float(best),
        "label_names": labels[0] if labels else (),
        **features,
    }


def _count(attempts: pd.DataFrame) -> dict[str, float]:
    """Return the meta-features that need no pictures, from the counts among an attempt's params."""
    n, n_labels = (_read_count(attempts, name) for name in ("task.n_train", "task.n_labels"))
    counted = {"ln_n": n, "ln_n_labels": n_labels, "ln_n_per_label": n / n_labels}
    return {name: math.log(value) for name, value in counted.items() if math.isfinite(value)}


def _read_count(attempts: pd.DataFrame, name: str) -> float:
    """Return a param's first value above 0, NaN where there is none."""
    values = read_numbers(attempts, name)
    known = values[values > 0]
    return float(known[0]) if known.size else math.nan


def _make_tasks(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(TASK_COLUMNS))
    frame = frame.astype({"task": "str", "task_digest": "str", "n_attempts": "int64", "label_names": "object"})
    frame[["best_score", *META_FEATURES]] = frame[["best_score", *META_FEATURES]].astype("float64")
    return frame


def _read_texts(attempts: pd.DataFrame, column: str) -> list[str]:
    """Return the distinct texts of a column in their order; none where there is no such column."""
    return [str(text) for text in attempts[column].dropna().unique()] if column in attempts.columns else []


def _read_json(text: str) -> Any:
    """Return the value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_labels(text: str) -> tuple[str, ...]:
    labels = _read_json(_CUT.sub(r"\1]", text))
    return tuple(str(label) for label in labels) if isinstance(labels, list) else ()


def _keep_known(features: Any) -> dict[str, float]:
    """Return the meta-features among what came, and of them the numbers that are no larger than any can be."""
    known = {name: features.get(name) for name in META_FEATURES} if isinstance(features, Mapping) else {}
    return {name: float(x) for name, x in known.items() if isinstance(x, int | float) and abs(x) < _LARGEST}


def _read_tasks(tasks: pd.DataFrame) -> tuple[Floats, Floats, list[frozenset[str]]]:
    """Return the meta-features, shape (n, n_features), their scales, shape (n_features,), and each task's words."""
    values = tasks[list(META_FEATURES)].to_numpy(dtype=np.float64)
    scales = np.array([_measure_scale(name, values[:, i]) for i, name in enumerate(META_FEATURES)])
    return values, scales, [_find_words(labels) for labels in tasks["label_names"]]


def _measure_scale(name: str, values: Floats) -> float:
    known = values[~np.isnan(values)]
    if not known.size:
        return 1.0
    low, high = META_FEATURES[name][0]
    if math.isfinite(high - low):
        own = high - low
    else:
        # Logarithms have no range of their own: a factor e is the least that counts; sizes are seen by the largest.
        own = 1.0 / _LEAST_SHARE if name.startswith("ln_") else float(known.max())
    return max(float(np.ptp(known)), _LEAST_SHARE * own)


def _find_words(labels: Sequence[str]) -> frozenset[str]:
    return frozenset(word for label in labels for word in _WORD.findall(strip_operators(label).casefold()))


def _compare(
    values: Floats, scales: Floats, words: Sequence[frozenset[str]], place: int
) -> tuple[Floats, Floats, Floats]:
    """Return one task's terms, shape (n, n_features), and its distances by pictures and words, shape (n,) each."""
    terms = np.abs(values - values[place]) / scales
    is_known = ~np.isnan(terms)
    n_known = is_known.sum(axis=1)
    pictures = np.where(n_known > 0, np.where(is_known, terms, 0.0).sum(axis=1) / np.maximum(n_known, 1), np.nan)
    here = words[place]
    by_words = [1 - len(here & there) / len(here | there) if here and there else np.nan for there in words]
    return terms, pictures, np.array(by_words, dtype=np.float64)


def _average(pictures: Floats, words: Floats) -> Floats:
    return np.where(np.isnan(words), pictures, (pictures + words) / 2)


def _explain(here: Floats, there: Floats, terms: Floats) -> str:
    names = list(META_FEATURES)
    largest = sorted((i for i in range(len(names)) if terms[i] > 0), key=lambda i: -terms[i])[:_N_TERMS]
    return ", ".join(f"{names[i]} {here[i]:.3g} here, {there[i]:.3g} there ({terms[i]:.2f})" for i in largest)


def _name_alike(terms: Floats, shared: frozenset[str]) -> str:
    names = list(META_FEATURES)
    least = sorted((i for i in range(len(names)) if terms[i] <= _ALIKE), key=lambda i: terms[i])[:_N_TERMS]
    return ", ".join([*map(repr, sorted(shared)[:_N_TERMS]), *(f"{names[i]} ({terms[i]:.2f})" for i in least)])


def _disagree(pictures: Floats, words: Floats) -> npt.NDArray[np.bool_]:
    """Return where one distance is in its lowest third and the other in its highest; never where a third is all."""
    both = ~np.isnan(pictures) & ~np.isnan(words)
    if np.count_nonzero(both) < 3:
        return np.zeros(len(pictures), dtype=bool)
    (near_pictures, far_pictures), (near_words, far_words) = _split(pictures, both), _split(words, both)
    disagree: npt.NDArray[np.bool_] = (near_pictures & far_words) | (far_pictures & near_words)
    return disagree & both


def _split(distances: Floats, known: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which distances are near and which far; one that most tasks share is neither."""
    low, high = np.quantile(distances[known], [1 / 3, 2 / 3])
    if low < high:
        return distances <= low, distances >= high
    return distances < low, distances > high


def place_tasks(distances: npt.ArrayLike) -> tuple[Floats, float]:
    """Return a place for each task and how much of the distances the map loses.

    Starts from classical scaling (Torgerson 1952) and lowers the stress by majorization (SMACOF, de Leeuw 1977).
    The same distances always give the same map.

    Args:
        distances: Shape (n, n), symmetric, 0 on the diagonal; NaN, not known, counts as 1.

    Returns:
        Places, float64 of shape (n, 2), centred; and Kruskal's stress-1, 0 for a faithful map.
    """
    wanted = np.nan_to_num(np.asarray(distances, dtype=np.float64), nan=1.0)
    places = _scale_classically(wanted)
    for _ in range(_N_STEPS):
        places = _majorize(wanted, places)
    lost = np.square(wanted - cdist(places, places)).sum()
    return places, float(np.sqrt(lost / max(np.square(wanted).sum(), 1e-300)))


def _scale_classically(distances: Floats) -> Floats:
    n = len(distances)
    centring = np.eye(n) - 1 / max(n, 1)
    values, vectors = np.linalg.eigh(-0.5 * centring @ np.square(distances) @ centring)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    # An eigenvector has no sign of its own: its largest part points up, on every machine.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), range(vectors.shape[1])])
    places = np.zeros((n, 2))
    places[:, : len(values)] = vectors * signs * np.sqrt(np.clip(values, 0, None))
    return places


def _majorize(wanted: Floats, places: Floats) -> Floats:
    """Return better places: the Guttman transform with equal weights."""
    now = cdist(places, places)
    ratios = np.divide(wanted, now, out=np.zeros_like(now), where=now > 1e-12)
    step = -ratios
    step[np.diag_indices_from(step)] = ratios.sum(axis=1)
    moved: Floats = step @ places / len(places)
    return moved


def find_similar_tasks(table: pd.DataFrame, task_or_config: str | Path, *, limit: int | None = 10) -> pd.DataFrame:
    """Return the tasks that are most like one, nearest first; see `rank_similar_tasks`.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        task_or_config: A task that the table knows, by name or digest; or a commands file, whose pictures are then
            looked at (this needs torch).
        limit: At most so many.

    Raises:
        NotFoundError: If there is no such task and no such file; names the nearest.
        BadInputError: If the commands or their pictures cannot be used.
    """
    tasks = task_table(table)
    try:
        name = find_task(table, str(task_or_config))
    except NotFoundError:
        file = Path(task_or_config)
        if file.suffix != ".json" and not file.is_file():
            raise
        tasks, name = pd.concat([tasks, _describe_commands(file)], ignore_index=True), NEW_TASK
    return rank_similar_tasks(tasks, name).head(len(tasks) if limit is None else limit)


def _describe_commands(file: Path) -> pd.DataFrame:
    """Return the task of a commands file, as a row of the table of tasks."""
    commands = load_train_commands(file)
    from mlmeta.data.task import describe_task, prepare_task

    task = prepare_task(commands, base_dir=file.parent)
    _, features = describe_task(task)
    return describe_new_task(features, task.pictures.label_names)
