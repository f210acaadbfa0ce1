"""Questions about all attempts, each answer beside one that is computed plainly."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from mlmeta import meta_query
from mlmeta.analysis.filter_grammar import FilterError
from mlmeta.errors import BadInputError, NotFoundError
from mlmeta.meta_query import FACTS

TASK = "omniglot-Latin"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


def make_small(**columns: Any) -> pd.DataFrame:
    """Attempts with these metrics and, as text, the params that begin with "p_"."""
    n = len(next(iter(columns.values())))
    facts = {
        "run_id": [f"{i:x}" * 32 for i in range(n)],
        "model_name": [f"m{i}" for i in range(n)],
        "status": "Complete",
        "task": "t",
        "experiment": "Default",
        "started": pd.date_range("2026-01-01", periods=n, tz="UTC", unit="ms")[::-1],
        "duration_s": 1.0,
    }
    table = pd.DataFrame(facts | columns | {"curve": None})
    table.attrs["kinds"] = {
        name: "param" if name.startswith("p_") else "metric" for name in columns if name not in facts
    }
    return table


# --- search


def test_a_search_gives_facts_params_and_metrics_of_what_the_filter_finds(table: pd.DataFrame) -> None:
    found = meta_query.search_attempts("accuracy > .9", order_by="accuracy DESC", limit=7, history=table)
    expected = table[table["accuracy"] > 0.9].sort_values("accuracy", ascending=False, kind="stable").head(7)
    assert found["run_id"].tolist() == expected["run_id"].tolist()
    assert tuple(found.columns[:6]) == FACTS
    assert found.columns[6:].tolist() == [c for c in table.columns if table.attrs["kinds"].get(c, "tag") != "tag"]
    assert found.index.tolist() == list(range(7))
    assert found.attrs["kinds"]["accuracy"] == "metric"


def test_without_a_filter_a_search_gives_all_the_newest_first(table: pd.DataFrame) -> None:
    shuffled = table.sample(frac=1, random_state=0)
    found = meta_query.search_attempts(history=shuffled)
    assert found["run_id"].tolist() == table["run_id"].tolist()
    pd.testing.assert_series_equal(found["arch.batch_norm"], table["arch.batch_norm"])


def test_a_search_gives_tags_and_experiments_that_the_filter_or_the_order_names(table: pd.DataFrame) -> None:
    text = "tags.`mlmeta.kind` = 'attempt' and experiment = 'Default'"
    found = meta_query.search_attempts(text, order_by=["tags.mlmeta.task_digest"], limit=1, history=table)
    assert [c for c in found.columns if c not in meta_query.search_attempts(history=table).columns] == [
        "tags.mlmeta.kind", "experiment", "tags.mlmeta.task_digest",
    ]  # fmt: skip


def test_a_search_gives_exactly_the_columns_that_are_named(table: pd.DataFrame) -> None:
    columns = ["metrics.accuracy", "run_id", "tags.mlmeta.kind", "accuracy", "curve"]
    found = meta_query.search_attempts("n_epoch > 0", columns=columns, limit=2, history=table)
    assert found.columns.tolist() == ["accuracy", "run_id", "tags.mlmeta.kind", "curve"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"filter": "acuracy > 1"}, "filter, character 1: there is no column 'acuracy'"),
        ({"order_by": "acuracy"}, "order_by, character 1"),
        ({"columns": ["run_id", "acuracy"]}, "columns, character 1: .*Did you mean 'accuracy'"),
        ({"limit": 0}, "limit must be 1 or more; got 0"),
    ],
)
def test_a_search_for_what_is_not_there_is_an_error(table: pd.DataFrame, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        meta_query.search_attempts(**arguments, history=table)


def test_an_empty_history_gives_no_rows_but_its_columns(table: pd.DataFrame) -> None:
    empty = table.iloc[:0][[*FACTS, "experiment", "curve"]]
    found = meta_query.search_attempts("accuracy > 0.5", order_by="accuracy", history=empty)
    assert (tuple(found.columns), len(found)) == (FACTS, 0)
    with pytest.raises(FilterError):
        meta_query.search_attempts("accuracy >", history=empty)
    curves = meta_query.learning_curves(filter="accuracy > 0.5", history=empty)
    assert (curves.columns.tolist(), len(curves)) == ([*FACTS, "metric", "step", "value"], 0)


def test_only_the_named_experiments_are_searched(table: pd.DataFrame) -> None:
    history = table.assign(experiment=["a", "b"] * 416)
    assert len(meta_query.search_attempts(history=history, experiments=["a"])) == 416
    assert meta_query.leaderboard(history=history, experiments=["none"]).empty


def test_a_table_that_lost_the_kinds_of_its_columns_is_searched_alike(table: pd.DataFrame) -> None:
    lost = table.copy()
    lost.attrs = {}
    found = meta_query.search_attempts("params.batch_size = 64 and metrics.accuracy > .9", history=lost)
    expected = meta_query.search_attempts("params.batch_size = 64 and metrics.accuracy > .9", history=table)
    assert found.columns.tolist() == expected.columns.tolist()
    assert found["run_id"].tolist() == expected["run_id"].tolist()
    assert lost.attrs == {}


# --- one attempt by its name


def test_by_name_the_newest_attempt_is_meant_and_by_run_id_the_exact_one() -> None:
    history = make_small(accuracy=[0.1, 0.2, 0.3, 0.4], model_name=["a", "b", "a", "0" * 32])
    found = meta_query.compare_attempts("a", "2" * 32, "0" * 32, history=history.iloc[::-1])
    assert found.loc[found["field"] == "run_id"].iloc[0, 1:-1].tolist() == ["2" * 32, "0" * 32]


def test_the_beginning_of_a_run_id_is_enough_where_it_is_clear() -> None:
    ids = ["abcdef0" + "0" * 25, "abcdef1" + "0" * 25, "f" * 32]
    history = make_small(accuracy=[0.1, 0.2, 0.3], run_id=ids, model_name=["x", "y", "ffffff"])
    found = meta_query.compare_attempts("abcdef1", "ffffff", history=history)
    assert found.iloc[0, 1:-1].tolist() == [ids[2], ids[1]]
    with pytest.raises(BadInputError, match="2 attempts have run ids that begin with 'abcdef'"):
        meta_query.compare_attempts("abcdef", "x", history=history)
    with pytest.raises(NotFoundError, match="no attempt 'abcde'"):
        meta_query.compare_attempts("abcde", "x", history=history)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("omniglot-latin-c003", "Did you mean 'omniglot-Latin-c003'"),
        ("", "there are "),
        ("%'; --", "there is no attempt"),
    ],
)
def test_an_unknown_attempt_is_not_found(table: pd.DataFrame, name: str, says: str) -> None:
    with pytest.raises(NotFoundError, match=says):
        meta_query.compare_attempts(name, "omniglot-Latin-c003", history=table)


# --- comparison


def test_a_comparison_shows_what_differs_and_marks_the_best(table: pd.DataFrame) -> None:
    names = [f"{TASK}-c003", f"{TASK}-c006", f"{TASK}-c040"]
    found = meta_query.compare_attempts(*names, history=table).set_index("field")
    rows = table[table["model_name"].isin(names)].set_index("model_name")
    order = rows["accuracy"].sort_values(ascending=False).index.tolist()
    assert found.columns.tolist() == [*order, "best"]
    for field in ("optimizer.lr", "accuracy", "duration_s", "train_loss"):
        assert found.loc[field, order].tolist() == rows.loc[order, field].tolist()
    assert found["best"].dropna().to_dict() == {
        "accuracy": rows["accuracy"].idxmax(),
        "duration_s": rows["duration_s"].idxmin(),
        "train_loss": rows["train_loss"].idxmin(),
    }
    assert found.loc[:, order].nunique(axis=1, dropna=False).min() > 1
    assert "task" not in found.index


def test_a_comparison_can_show_what_is_the_same(table: pd.DataFrame) -> None:
    names = [f"{TASK}-c003", f"{TASK}-c006"]
    found = meta_query.compare_attempts(*names, all_columns=True, history=table).set_index("field")
    assert found.loc["task"].tolist()[:2] == [TASK] * 2
    assert found.loc["criterion.name", names[0]] == "CrossEntropyLoss"
    assert not [field for field in found.index if field.startswith("tags.")]


def test_a_comparison_gives_python_values_and_none_for_missing() -> None:
    history = make_small(
        accuracy=[0.5, np.nan], p_n=pd.array([None, 3], "Int64"), p_b=pd.array([True, None], "boolean")
    )
    found = meta_query.compare_attempts("m1", "m0", history=history).set_index("field")
    assert found.columns.tolist() == ["m0", "m1", "best"]
    assert found.loc["p_n", ["m0", "m1"]].tolist() == [None, 3]
    assert found.loc["p_b", "m0"] is True
    assert found.loc["accuracy", "m1"] is None
    # There is nothing to be better than.
    assert pd.isna(found.loc["accuracy", "best"])


def test_equal_values_have_no_best_and_equal_names_are_told_apart() -> None:
    history = make_small(accuracy=[0.5, 0.5, 0.4], test_loss=[1.0, 3.0, 0.5], model_name=["a", "a", "best"])
    found = meta_query.compare_attempts("0" * 32, "1" * 32, history=history).set_index("field")
    assert found.columns.tolist() == ["a (00000000)", "a (11111111)", "best"]
    assert found["best"].dropna().to_dict() == {"test_loss": "a (00000000)"}
    assert pd.isna(found.loc["accuracy", "best"])
    assert "best (22222222)" in meta_query.compare_attempts("a", "best", history=history).columns


def test_a_metric_of_which_less_is_better_orders_a_comparison() -> None:
    history = make_small(test_loss=[3.0, np.nan, 1.0])
    found = meta_query.compare_attempts("m0", "m1", "m2", metric="test_loss", history=history)
    assert found.columns.tolist() == ["field", "m2", "m0", "m1", "best"]
    with pytest.raises(NotFoundError, match="Did you mean 'test_loss'"):
        meta_query.compare_attempts("m0", "m1", metric="tst_loss", history=history)


def test_attempts_that_were_never_tested_can_be_compared() -> None:
    history = make_small(train_loss=[3.0, 2.0])
    assert meta_query.compare_attempts("m0", "m1", history=history).columns.tolist() == ["field", "m0", "m1", "best"]


@pytest.mark.parametrize("names", [(), ("m0",), ("m0", "0" * 32)])
def test_one_attempt_alone_cannot_be_compared(names: tuple[str, ...]) -> None:
    with pytest.raises(BadInputError, match="2 to 100 different attempts"):
        meta_query.compare_attempts(*names, history=make_small(accuracy=[0.1, 0.2]))


# --- learning curves


def test_learning_curves_are_those_of_the_attempts(table: pd.DataFrame) -> None:
    found = meta_query.learning_curves(filter=f"task = '{TASK}' and accuracy > .7", history=table)
    chosen = table[(table["task"] == TASK) & (table["accuracy"] > 0.7)]
    assert found.columns.tolist() == [*FACTS, "metric", "step", "value"]
    assert found["run_id"].drop_duplicates().tolist() == chosen["run_id"].tolist()
    for run_id, curve in zip(chosen["run_id"], chosen["curve"], strict=True):
        own = found[found["run_id"] == run_id]
        assert own["step"].tolist() == list(range(1, len(curve) + 1))
        np.testing.assert_array_equal(own["value"], curve)
    assert found["step"].dtype == "Int64"
    assert set(found["metric"]) == {"train_loss"}


def test_learning_curves_come_in_the_order_of_the_names_and_keep_gaps() -> None:
    history = make_small(accuracy=[0.1, 0.2, 0.3])
    history["curve"] = pd.Series([np.array([1.0, np.nan]), None, np.array([3.0])], dtype=object)
    found = meta_query.learning_curves("m2", "m1", "m0", "m2", history=history)
    assert found["model_name"].tolist() == ["m2", "m0", "m0"]
    np.testing.assert_array_equal(found["value"], [3.0, 1.0, np.nan])


# --- rankings


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("accuracy", "maximize"), ("val_accuracy", "maximize"), ("macro_f1", "maximize"),
        ("pictures_per_second", "maximize"), ("train_loss", "minimize"), ("epoch_seconds", "minimize"),
        ("duration_s", "minimize"), ("top5_error", "minimize"),
    ],
)  # fmt: skip
def test_the_name_of_a_metric_says_its_direction(metric: str, direction: str) -> None:
    assert meta_query.direction(metric) == direction


@pytest.mark.parametrize("metric", ["accuracy", "train_loss", "metrics.accuracy"])
def test_a_leaderboard_has_the_best_attempts_of_a_task(table: pd.DataFrame, metric: str) -> None:
    found = meta_query.leaderboard(TASK, metric=metric, limit=10, history=table)
    column = metric.removeprefix("metrics.")
    own = table[table["task"] == TASK].dropna(subset=column)
    own = own.sort_values("started").sort_values(column, ascending=column == "train_loss", kind="stable").head(10)
    assert found["run_id"].tolist() == own["run_id"].tolist()
    assert found["rank"].tolist() == own[column].rank(method="min", ascending=column == "train_loss").tolist()
    assert tuple(found.columns[:7]) == ("rank", *FACTS)
    assert found.columns[-1] == column
    params = [c for c in table.columns if table.attrs["kinds"].get(c) == "param" and own[c].nunique(dropna=False) > 1]
    assert found.columns[7:-1].tolist() == params


def test_a_leaderboard_leaves_out_what_has_no_score_and_shares_ranks() -> None:
    history = make_small(accuracy=[0.5, np.nan, 0.7, 0.5, -np.inf])
    found = meta_query.leaderboard(history=history, limit=None)
    assert found["rank"].tolist() == [1, 2, 2, 4]
    # Of equal ones the older comes first.
    assert found["model_name"].tolist() == ["m2", "m3", "m0", "m4"]


def test_a_task_is_known_by_its_digest_too(table: pd.DataFrame) -> None:
    digest = table.loc[table["task"] == TASK, "tags.mlmeta.task_digest"].iloc[0]
    by_name = meta_query.leaderboard(TASK, history=table)
    pd.testing.assert_frame_equal(meta_query.leaderboard(digest, history=table), by_name)
    pd.testing.assert_frame_equal(meta_query.leaderboard(digest[:8], history=table), by_name)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda t: meta_query.leaderboard("omniglot-latin", history=t), "no task .*Did you mean 'omniglot-Latin'"),
        (lambda t: meta_query.leaderboard("abcdef", history=t), "no task 'abcdef'; there are "),
        (lambda t: meta_query.leaderboard(metric="acuracy", history=t), "Did you mean 'accuracy'"),
        (lambda t: meta_query.pareto_front("acuracy", history=t), "Did you mean 'accuracy'"),
        (lambda t: meta_query.pareto_front(task="x", history=t), "no task 'x'"),
        (lambda t: meta_query.hyperparameter_importance(task="omniglot-latin", history=t), "Did you mean"),
        (lambda t: meta_query.marginal_effect("optimizer.lr", task="omniglot-latin", history=t), "Did you mean"),
        (lambda t: meta_query.similar_tasks("omniglot-latin", history=t), "Did you mean 'omniglot-Latin'"),
        (lambda t: meta_query.similar_tasks("nothing.json", history=t), "no such file"),
    ],
)
def test_what_is_not_there_is_not_found(
    table: pd.DataFrame, call: Callable[[pd.DataFrame], pd.DataFrame], says: str
) -> None:
    with pytest.raises(NotFoundError, match=says):
        call(table)


@pytest.mark.parametrize("metric", ["status", "started", "arch.batch_norm"])
def test_attempts_are_ranked_by_numbers_only(table: pd.DataFrame, metric: str) -> None:
    with pytest.raises(BadInputError, match="ranked by numbers"):
        meta_query.leaderboard(metric=metric, history=table)


@pytest.mark.parametrize("seed", range(8))
def test_the_pareto_front_is_what_no_other_attempt_beats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gain, cost = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    gain[:3], cost[3] = [np.nan, -np.inf, np.inf], np.nan
    history = make_small(accuracy=gain, duration_s=cost)
    points = [(g, c, i) for i, (g, c) in enumerate(zip(gain, cost, strict=True)) if not math.isnan(g + c)]
    kept = {i for g, c, i in points if not any(h >= g and d <= c and (h > g or d < c) for h, d, _ in points)}
    history["run_id"] = [f"{i:032x}" for i in range(40)]
    found = meta_query.pareto_front(history=history)
    assert {int(run_id, 16) for run_id in found["run_id"]} == kept
    assert found["duration_s"].is_monotonic_increasing
    assert found.columns.tolist() == [*FACTS, "accuracy"]


def test_the_pareto_front_of_real_attempts_is_a_part_of_them(table: pd.DataFrame) -> None:
    found = meta_query.pareto_front("accuracy", "arch.n_parameters", task=TASK, history=table)
    assert found["accuracy"].is_monotonic_increasing
    assert found["accuracy"].iloc[-1] == table.loc[table["task"] == TASK, "accuracy"].max()
    assert found.columns[-2:].tolist() == ["accuracy", "arch.n_parameters"]


# --- importance and similarity


def test_importance_and_effect_are_those_of_the_named_task(table: pd.DataFrame) -> None:
    from mlmeta.analysis.importance import measure_importance
    from mlmeta.analysis.marginal_effects import marginal_effect

    found = meta_query.hyperparameter_importance(task=TASK, history=table)
    pd.testing.assert_frame_equal(found, measure_importance(table, "accuracy", task=TASK))
    effect = meta_query.marginal_effect("optimizer.lr", task=TASK, history=table)
    pd.testing.assert_frame_equal(effect, marginal_effect(table, "optimizer.lr", task=TASK))


def test_similar_tasks_are_ranked(table: pd.DataFrame) -> None:
    found = meta_query.similar_tasks(TASK, limit=4, history=table)
    assert len(found) == 4
    assert found["distance"].is_monotonic_increasing
    assert found["task"].str.startswith("omniglot").all()
    assert TASK not in found["task"].tolist()


def test_the_pictures_of_a_commands_file_are_compared_with_all_tasks(
    table: pd.DataFrame, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    found = meta_query.similar_tasks(write_json(toy_document), limit=None, history=table.drop(columns="accuracy"))
    assert sorted(found["task"]) == sorted(table["task"].unique())
    assert found["pictures"].between(0, 1).all()
    # Three labels of plain colours are nothing like letters.
    assert not found["task"].iloc[0].startswith("omniglot")


def test_a_query_needs_no_torch() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from attempt_table import make_table;"
        "import mlmeta.meta_query as q; t = make_table(8); q.search_attempts('accuracy > .5', history=t);"
        "q.leaderboard(history=t);"
        "q.similar_tasks('digits-0', history=t); q.learning_curves(history=t); print(*sys.modules)"
    )
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, tests], capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "mlflow"} & set(done.stdout.split())


# --- a real store


@pytest.fixture
def filled(store: str) -> str:
    """A store with two attempts of one name, one made by hand in the UI, and a run of another tool."""
    client = MlflowClient()
    for number, tags in enumerate(
        [{"mlmeta.kind": "attempt", "mlmeta.status": "Complete"}] * 2 + [{"mlmeta.kind": "attempt"}, {}]
    ):
        name = "twice" if number < 2 else f"other-{number}"
        run = client.create_run("0", run_name=name, tags=tags, start_time=1_790_000_000_000 + number * 60_000)
        params = [Param("optimizer.lr", str(0.1 / 10**number)), Param("odd / key", "x")] if number != 2 else []
        metrics = [Metric("accuracy", 0.5 + number / 10, 0, 0)]
        metrics += [Metric("val_loss", 3.0 - step, 0, step) for step in (2, 1)]
        losses = [RunTag("mlmeta.training_losses", json.dumps([2.0, 1.0 + number]))]
        client.log_batch(run.info.run_id, metrics=metrics, params=params, tags=losses)
        client.set_terminated(run.info.run_id)
    return store


def test_the_history_of_a_real_store_is_asked_without_a_table(filled: str) -> None:
    found = meta_query.search_attempts("params.`odd / key` = 'x' and optimizer.lr <= .1", tracking_uri=filled)
    assert found["model_name"].tolist() == ["twice", "twice"]
    assert found["optimizer.lr"].tolist() == [0.01, 0.1]
    assert len(meta_query.search_attempts()) == 3
    assert meta_query.search_attempts("started >= '2026-09-21' and optimizer.lr is null")["model_name"].tolist() == [
        "other-2"
    ]
    by_name = meta_query.learning_curves("twice")
    assert by_name["value"].tolist() == [2.0, 2.0]
    assert meta_query.learning_curves("twice", metric="val_loss")["step"].tolist() == [1, 2]
    assert meta_query.learning_curves("twice", metric="val_loss")["value"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("kept", [[0.5] * 500, None])
def test_curves_that_the_history_has_thinned_or_not_yet_are_read_from_the_store(
    store: str, kept: list[float] | None
) -> None:
    client = MlflowClient()
    run_id = client.create_run("0", run_name="long", tags={"mlmeta.kind": "attempt"}).info.run_id
    whole = [Metric("train_loss", 1 / step, 0, step) for step in range(1, 1_001)]
    client.log_batch(run_id, metrics=whole, tags=[RunTag("mlmeta.training_losses", json.dumps(kept))])
    found = meta_query.learning_curves("long")
    assert found["step"].tolist() == list(range(1, 1_001))
    np.testing.assert_allclose(found["value"], 1 / np.arange(1, 1_001))


@pytest.mark.parametrize("metric", ["accuracy", "train_loss"])
def test_the_values_that_worked_are_those_of_each_tasks_best_quarter(metric: str) -> None:
    table = make_table(16)
    found = meta_query.best_values("optimizer.lr", metric=metric, history=table)
    assert list(found.columns) == ["task", "n_attempts", "best_score", "best_value", "low", "high"]
    assert found["task"].tolist() == sorted(set(table["task"]))
    for row in found.itertuples():
        columns = (table[name] for name in ("task", metric, "model_name", "optimizer.lr"))
        attempts = sorted(
            (score if metric == "train_loss" else -score, name, lr)
            for task, score, name, lr in zip(*columns, strict=True)
            if task == row.task and score == score
        )
        best = [lr for *_, lr in attempts[: round(len(attempts) / 4)]]
        assert (row.n_attempts, row.best_value) == (len(attempts), best[0])
        assert abs(row.best_score) == abs(attempts[0][0])
        assert (row.low, row.high) == pytest.approx(tuple(np.quantile(best, [0.1, 0.9])))


def test_the_names_that_worked_are_counted() -> None:
    found = meta_query.best_values("optimizer.name", history=make_table())
    assert list(found.columns)[-1] == "common"
    counts = [int(part.rsplit(" ", 1)[1]) for part in found["common"][0].split(", ")]
    assert sum(counts) == 16
    assert counts == sorted(counts, reverse=True)


def test_an_unknown_param_is_named_with_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"optimizer\.lr"):
        meta_query.best_values("optimzer.lr", history=make_table(2))
