"""The history: one table whatever the store, and what changed since is seen."""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from servers import Postgres, Server, find_postgres

from mlmeta.errors import MlmetaError, NotFoundError
from mlmeta.history import loading, sql_reader
from mlmeta.history.api_reader import ApiReader
from mlmeta.history.loading import load_attempts, load_curves, open_reader
from mlmeta.history.reader import empty_table
from mlmeta.history.sql_reader import SqlReader, open_sql_reader
from mlmeta.history.table import make_frame

STORES = ("SQLite", "SQLite without ADBC", "SQLite by API", "server on SQLite", "PostgreSQL", "server on PostgreSQL")
NOW_MS = 0


@pytest.fixture(autouse=True)
def now() -> None:
    """Attempts end when their test runs: an API is asked for what ended since shortly before it was last read."""
    global NOW_MS
    NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    programs = find_postgres()
    pytest.importorskip("psycopg", reason="needs a driver for PostgreSQL")
    if programs is None:
        pytest.skip("needs PostgreSQL")
    server = Postgres(programs)
    server.start()
    yield server
    server.stop()


def scan_every_file(patch: pytest.MonkeyPatch) -> None:
    """Have SQLite files read by Arrow's driver however small they are, and nothing else do it where that fails."""
    pytest.importorskip("adbc_driver_sqlite", reason="needs Arrow's driver for SQLite")

    open_scan = sql_reader.open_scan

    @contextlib.contextmanager
    def scan(file: Path) -> Iterator[sql_reader.Read]:
        try:
            with open_scan(file) as read:
                yield read
        except (OSError, pa.ArrowException) as error:
            raise AssertionError("Arrow's driver failed") from error

    patch.setattr(sql_reader, "SCAN_BYTES", 0)
    patch.setattr(sql_reader, "open_scan", scan)


@pytest.fixture(scope="class", params=STORES)
def store_uri(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, store_template: Path
) -> Iterator[str]:
    """The URI of a store of each kind."""
    folder = tmp_path_factory.mktemp("history")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    shutil.copy(store_template, folder / "mlflow.db")
    if "PostgreSQL" in request.param:
        uri = request.getfixturevalue("postgres").uri
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "SQLite by API":
            patch.setattr(loading, "open_sql_reader", lambda *_, **__: None)
        if request.param == "SQLite":
            scan_every_file(patch)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        if not request.param.startswith("server"):
            yield uri
            return
        server = Server(folder, uri)
        server.start()
        yield server.uri
        server.kill()


@pytest.fixture
def client(store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A client of the store, which is emptied of what another test left."""
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store_uri)
    client = MlflowClient(tracking_uri=store_uri)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            client.delete_run(run.info.run_id)
        if experiment.experiment_id != "0":
            client.rename_experiment(experiment.experiment_id, f"{experiment.experiment_id} of another test")
            client.delete_experiment(experiment.experiment_id)
    return client


def add_attempt(
    client: MlflowClient, name: str = "toy", *, number: int = 0, experiment: str = "0", ended: bool = True, **more: Any
) -> str:
    """Add an attempt, and return its run id."""
    tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Complete" if ended else "Training"} | more.get("tags", {})
    start_ms = NOW_MS + 1000 * number
    run_id = str(client.create_run(experiment, start_ms, tags, run_name=name).info.run_id)
    metrics = [Metric(key, value, start_ms, 0) for key, value in more.get("metrics", {}).items()]
    client.log_batch(run_id, metrics, [Param(key, value) for key, value in more.get("params", {}).items()])
    if ended:
        client.set_terminated(run_id, "FINISHED", start_ms + 1500)
    return run_id


class TestEveryStore:
    """The contract of the table."""

    def test_params_have_the_type_of_all_their_values(self, client: MlflowClient) -> None:
        values = [("0.1", "3", "true", "relu", "3", "auto"), ("1e-3", "-4", "false", "true", "x", "64")]
        for number, row in enumerate(values):
            add_attempt(client, number=number, params=dict(zip("abcdef", row, strict=True)))
        add_attempt(client, number=2)
        table = load_attempts()
        assert [str(table[key].dtype) for key in "abcdef"] == ["float64", "Int64", "boolean", "str", "str", "str"]
        assert table["a"].tolist()[1:] == [0.001, 0.1]
        assert table["b"].tolist()[1:] == [-4, 3]
        assert table["c"].tolist()[1:] == [False, True]
        assert table.iloc[0][list("abcdef")].isna().all()

    def test_facts_are_those_of_the_run(self, client: MlflowClient) -> None:
        first = add_attempt(client, "first", number=0, metrics={"accuracy": 0.5}, params={"data.path": "x/pets"})
        second = add_attempt(client, "second", number=1, ended=False)
        table = load_attempts()
        assert list(table.columns[:7]) == [
            "run_id", "model_name", "status", "task", "experiment", "started", "duration_s",
        ]  # fmt: skip
        assert table["run_id"].tolist() == [second, first]
        assert table["model_name"].tolist() == ["second", "first"]
        assert table["status"].tolist() == ["Training", "Complete"]
        assert table["task"].tolist()[1] == "pets"
        assert table["started"].tolist()[1] == pd.Timestamp(NOW_MS, unit="ms", tz="UTC")
        assert str(table["started"].dtype) == "datetime64[ms, UTC]"
        assert table["duration_s"].tolist()[1] == 1.5
        assert math.isnan(table["duration_s"][0])
        assert table.attrs["kinds"]["accuracy"] == "metric"
        assert table.attrs["kinds"]["data.path"] == "param"

    def test_odd_metrics_are_what_was_logged(self, client: MlflowClient) -> None:
        odd = {"nan": math.nan, "most": math.inf, "least": -math.inf, "one": 1.0}
        add_attempt(client, metrics=odd)
        add_attempt(client, number=1, metrics={"one": 2.0})
        table = load_attempts()
        row = table.iloc[1]
        assert (row["most"], row["least"], row["one"]) == (math.inf, -math.inf, 1.0)
        assert math.isnan(row["nan"])
        assert math.isnan(table["most"][0])

    def test_odd_names_and_long_values_come_through(self, client: MlflowClient) -> None:
        params = {"with space": "1", "ünï": "2", "a/b": "3", "k" * 250: "4", "long": "x" * 5000, "status": "5"}
        add_attempt(client, params=params, metrics={"task": 1.0})
        row = load_attempts().iloc[0]
        assert [row["with space"], row["ünï"], row["a/b"], row["k" * 250]] == [1, 2, 3, 4]
        assert row["long"] == "x" * 5000
        assert (row["params.status"], row["metrics.task"], row["status"]) == (5, 1.0, "Complete")

    def test_the_curve_comes_from_its_tag(self, client: MlflowClient) -> None:
        written = ["[1.5, null, 0.25]", "no curve", "[2e-3]", "[]", "[1,2]", "[1e999, NaN]", "[[1]]", "[1]]"]
        expected = [[1.5, math.nan, 0.25], None, [2e-3], [], [1, 2], [math.inf, math.nan], None, None]
        for number, text in enumerate(written):
            add_attempt(client, number=-number, tags={"mlmeta.training_losses": text})
        for curve, values in zip(load_attempts()["curve"], expected, strict=True):
            assert (curve is None) == (values is None)
            if values is not None:
                assert curve.dtype == np.float64
                np.testing.assert_array_equal(curve, values)

    def test_a_whole_history_of_a_metric_can_be_read(self, client: MlflowClient) -> None:
        runs = [add_attempt(client, number=number) for number in range(3)]
        for run_id in runs[:2]:
            client.log_batch(run_id, [Metric("loss", 1 / step, NOW_MS, step) for step in (3, 1, 2)])
        client.log_metric(runs[1], "loss", math.nan, NOW_MS, 4)
        points = load_curves(runs[::-1], metric="loss")
        assert points["run_id"].tolist() == [runs[1]] * 4 + [runs[0]] * 3
        assert points["step"].tolist() == [1, 2, 3, 4, 1, 2, 3]
        assert points["value"].tolist()[4:] == [1.0, 0.5, 1 / 3]
        assert math.isnan(points["value"][3])
        assert load_curves([], metric="loss").empty

    def test_runs_of_other_tools_are_left_out_unless_asked_for(self, client: MlflowClient) -> None:
        mine = add_attempt(client)
        other = client.create_run("0", NOW_MS - 1, run_name="other").info.run_id
        assert load_attempts()["run_id"].tolist() == [mine]
        assert load_attempts(all_runs=True)["run_id"].tolist() == [mine, other]
        assert load_attempts(all_runs=True)["status"].tolist() == ["Complete", "RUNNING"]

    def test_an_empty_store_is_an_empty_table(self, client: MlflowClient) -> None:
        table = load_attempts()
        assert len(table) == 0
        assert list(table.columns) == [*make_frame(empty_table()).columns]

    def test_experiments_are_chosen_by_name_or_id(self, client: MlflowClient) -> None:
        number = client.create_experiment("pets")
        add_attempt(client, number=0)
        in_pets = add_attempt(client, number=1, experiment=number)
        assert load_attempts(experiments=["pets"])["run_id"].tolist() == [in_pets]
        assert load_attempts(experiments=[number])["experiment"].tolist() == ["pets"]
        assert len(load_attempts(experiments=["pets", "Default"])) == 2
        with pytest.raises(NotFoundError, match=r"no attempt is in an experiment 'pet'. Did you mean 'pets'\?"):
            load_attempts(experiments=["pet"])

    def test_what_is_new_is_seen(self, client: MlflowClient) -> None:
        first = add_attempt(client, number=0)
        load_attempts()
        second = add_attempt(client, number=50, params={"new": "1"})
        # Of an import, with its own times: long before the last reading.
        batch = uuid.uuid4().hex
        client.set_experiment_tag("0", "mlmeta.import_batches", json.dumps([batch]))
        third = add_attempt(client, number=-(10**6), tags={"mlmeta.import_batch": batch})
        assert load_attempts()["run_id"].tolist() == [second, first, third]
        assert_as_read_anew()

    def test_what_was_at_work_is_seen_when_it_ends(self, client: MlflowClient) -> None:
        run_id = add_attempt(client, number=0, ended=False)
        assert load_attempts()["status"].tolist() == ["Training"]
        client.log_metric(run_id, "accuracy", 0.25)
        assert load_attempts()["accuracy"].tolist() == [0.25]
        client.set_tag(run_id, "mlmeta.status", "Complete")
        client.set_terminated(run_id, "FINISHED", NOW_MS + 500)
        table = load_attempts()
        assert (table["status"].tolist(), table["duration_s"].tolist()) == (["Complete"], [0.5])
        assert_as_read_anew()

    def test_what_is_deleted_goes_and_comes_back(self, client: MlflowClient) -> None:
        runs = [add_attempt(client, number=number, params={"a": str(number)}) for number in range(3)]
        load_attempts()
        client.delete_run(runs[1])
        assert load_attempts()["run_id"].tolist() == [runs[2], runs[0]]
        assert_as_read_anew()
        client.restore_run(runs[1])
        assert load_attempts()["a"].tolist() == [2, 1, 0]
        assert_as_read_anew()

    def test_a_deleted_experiment_takes_its_attempts_with_it(self, client: MlflowClient) -> None:
        number = client.create_experiment("gone soon")
        add_attempt(client, number=0)
        add_attempt(client, number=1, experiment=number)
        assert len(load_attempts()) == 2
        client.delete_experiment(number)
        assert load_attempts()["experiment"].tolist() == ["Default"]
        client.restore_experiment(number)
        assert len(load_attempts()) == 2

    def test_a_test_that_ends_later_is_seen(self, client: MlflowClient) -> None:
        run_id = add_attempt(client)
        load_attempts()
        client.log_metric(run_id, "accuracy", 0.75)
        client.set_terminated(run_id, "FINISHED", int(time.time() * 1000))
        assert load_attempts()["accuracy"].tolist() == [0.75]

    def test_a_whole_reading_sees_every_change_by_hand(self, client: MlflowClient) -> None:
        run_id = add_attempt(client, tags={"colour": "red"})
        load_attempts()
        client.log_batch(run_id, params=[Param("late", "1")], tags=[RunTag("colour", "blue")])
        table = load_attempts(full=True)
        assert (table["late"].tolist(), table["tags.colour"].tolist()) == ([1], ["blue"])

    def test_tags_changed_by_hand_are_seen_where_the_tables_can_be_read(
        self, client: MlflowClient, store_uri: str
    ) -> None:
        run_id = add_attempt(client, tags={"colour": "red", "old": "x"})
        add_attempt(client, number=1, tags={"colour": "green"})
        load_attempts()
        if isinstance(open_reader(store_uri), ApiReader):
            pytest.skip("MLflow's interface does not tell which tags were changed")
        client.set_tag(run_id, "colour", "blue")
        assert load_attempts()["tags.colour"].tolist() == ["green", "blue"]
        client.set_tag(run_id, "new", "1")
        assert load_attempts()["tags.new"].tolist()[1] == "1"
        client.delete_tag(run_id, "old")
        assert "tags.old" not in load_attempts().columns
        client.update_run(run_id, name="renamed")
        assert load_attempts()["model_name"].tolist()[1] == "renamed"
        assert_as_read_anew()


def assert_as_read_anew() -> None:
    """Compare the table of the cache with one that was read without it."""
    table = load_attempts()
    pd.testing.assert_frame_equal(table, load_attempts(full=True))


# The cache.


@pytest.fixture
def cache(store: str, tmp_path: Path) -> Path:
    """The folder that the cache of a fresh store will be in."""
    return tmp_path / "cache" / "history"


@pytest.fixture
def local(store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=store)


def cached_files(cache: Path) -> list[Path]:
    return sorted(file for file in cache.rglob("*") if file.is_file() and file.name != "lock")


@pytest.mark.parametrize(
    "content", [b"", b"no parquet", b"{}", b'{"format": 99}'], ids=["empty", "text", "object", "version"]
)
@pytest.mark.parametrize("kind", ["manifest.json", "*.parquet"])
def test_a_damaged_cache_is_made_again(local: MlflowClient, cache: Path, content: bytes, kind: str) -> None:
    add_attempt(local, params={"a": "1"})
    expected = load_attempts()
    (file,) = cache.rglob(kind)
    file.write_bytes(content)
    pd.testing.assert_frame_equal(load_attempts(), expected)
    add_attempt(local, number=1)
    assert len(load_attempts()) == 2


def test_a_changed_byte_in_the_cache_is_noticed(local: MlflowClient, cache: Path) -> None:
    for number in range(20):
        add_attempt(local, number=number, params={"a": str(number), "b": "x" * number})
    expected = load_attempts()
    (file,) = cache.rglob("*.parquet")
    content = file.read_bytes()
    for at in range(4, len(content) - 8, max(1, len(content) // 60)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        pd.testing.assert_frame_equal(load_attempts(), expected)
        for other in cache.rglob("*.parquet"):
            if other != file:
                other.unlink()
        json_file = next(cache.rglob("manifest.json"))
        manifest = json.loads(json_file.read_text())
        manifest["segments"][0]["file"] = file.name
        json_file.write_text(json.dumps(manifest))


def test_a_file_that_vanished_from_the_cache_is_read_again(local: MlflowClient, cache: Path) -> None:
    add_attempt(local)
    load_attempts()
    next(cache.rglob("*.parquet")).unlink()
    assert len(load_attempts()) == 1


def test_a_cache_that_cannot_be_written_is_done_without(
    local: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_attempt(local)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "file"))
    assert len(load_attempts()) == 1


def test_readers_at_the_same_time_see_whole_tables(local: MlflowClient) -> None:
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(10):
                table = load_attempts()
                # A run is there before its params are; when it has ended it has all.
                assert table["a"][table["duration_s"].notna()].notna().all()
                assert table["run_id"].is_unique
        except BaseException as error:  # noqa: BLE001  # handed to the test
            failures.append(error)

    add_attempt(local, params={"a": "1"})
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 12):
        add_attempt(local, number=number, params={"a": str(number)})
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(load_attempts()) == 12


def test_many_small_changes_leave_few_files(local: MlflowClient, cache: Path) -> None:
    for number in range(30):
        add_attempt(local, number=number)
        assert len(load_attempts()) == number + 1
    assert len(list(cache.rglob("*.parquet"))) <= 4
    assert_as_read_anew()


def test_a_store_that_did_not_change_is_not_asked(local: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    add_attempt(local)
    monkeypatch.setattr(sql_reader, "_RACE_S", -1.0)
    expected = load_attempts()

    def refuse(*_: Any) -> Any:
        raise AssertionError("it was asked")

    monkeypatch.setattr(SqlReader, "read_changes", refuse)
    pd.testing.assert_frame_equal(load_attempts(), expected)
    monkeypatch.undo()
    add_attempt(local, number=1)
    assert len(load_attempts()) == 2


def test_a_schema_of_another_version_is_read_by_the_public_interface(
    store: str, local: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_attempt(local, params={"a": "1"})
    expected = load_attempts()
    assert isinstance(open_sql_reader(store), SqlReader)
    monkeypatch.setattr(sql_reader, "KNOWN_SCHEMAS", frozenset())
    assert isinstance(open_reader(store), ApiReader)
    pd.testing.assert_frame_equal(load_attempts(full=True), expected)


def test_this_mlflow_has_a_schema_that_is_known(store: str) -> None:
    assert open_sql_reader(store) is not None


def test_reading_changes_nothing_in_the_store(store: str, local: MlflowClient, tmp_path: Path) -> None:
    add_attempt(local)
    before = (tmp_path / "mlflow.db").read_bytes()
    load_attempts()
    load_curves(["x"], metric="loss")
    assert (tmp_path / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "postgresql+psycopg://nobody@127.0.0.1:9/none", "sqlite:////no/such/folder/mlflow.db"]
)
def test_a_store_that_is_away_is_one_clear_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlmetaError, match="tracking store"):
        load_attempts(uri)


def test_two_tasks_of_one_name_are_told_apart(local: MlflowClient) -> None:
    for number, digest in enumerate(["aaaaaaaaaa", "bbbbbbbbbb", "bbbbbbbbbb"]):
        tags = {"mlmeta.task_digest": digest}
        add_attempt(local, number=number, params={"data.path": f"some{number}/pets"}, tags=tags)
    assert load_attempts()["task"].tolist() == ["pets @bbbbbb", "pets @bbbbbb", "pets @aaaaaa"]


def test_one_task_has_one_name_whatever_way_led_to_it(local: MlflowClient) -> None:
    for number, path in enumerate(["there/pets", "/mnt/copy of pets"]):
        tags = {"mlmeta.task_digest": "aaaaaaaaaa"}
        add_attempt(local, number=number, params={"data.path": path}, tags=tags)
    assert load_attempts()["task"].nunique() == 1


def test_a_store_whose_file_is_gone_is_an_empty_one(local: MlflowClient, tmp_path: Path, store_template: Path) -> None:
    """The cache of the tables is none for the interface, which is asked where there is no file."""
    del local
    uri = f"sqlite:///{tmp_path}/gone.db"
    shutil.copy(store_template, tmp_path / "gone.db")
    MlflowClient(uri).create_run("0", run_name="lost", tags={"mlmeta.kind": "attempt", "mlmeta.status": "Complete"})
    assert load_attempts(uri)["model_name"].tolist() == ["lost"]
    for left in tmp_path.glob("gone.db*"):
        left.unlink()
    # A process that still has the file open would see what was in it.
    program = f"from mlmeta.history.loading import load_attempts; print(len(load_attempts({uri!r})))"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == "0\n", done.stderr


# By Arrow's driver, and by rows.


@pytest.fixture(params=["scan", "rows"])
def tables(
    request: pytest.FixtureRequest, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A connection to a fresh store's tables, which are read in either way."""
    del store
    if request.param == "scan":
        scan_every_file(monkeypatch)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as connection:
        yield connection


def add_rows(tables: sqlite3.Connection, run_id: str, **tags: str | None) -> None:
    """Add a run as no client of MLflow would have to."""
    columns = "run_uuid, name, source_type, user_id, status, start_time, lifecycle_stage, artifact_uri, experiment_id"
    values = (run_id, f"model {run_id}", "LOCAL", "me", "FINISHED", 1, "active", "", 0)
    tables.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    for key, value in ({"mlmeta.kind": "attempt", "mlflow.note.content": "x"} | tags).items():
        tables.execute("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", (key, value, run_id))


def change_something(tables: sqlite3.Connection, draw: random.Random, run_id: str, new_id: str) -> None:
    change = draw.choice(["new", "tag", "status", "end", "name", "stage", "every tag", "kind", "remove", "experiment"])
    if change == "new":
        add_rows(tables, new_id, colour="x")
    elif change == "tag":
        key, value = draw.choice(["colour", "late"]), draw.choice(["x", "y", "", None, "drop"])
        tables.execute("DELETE FROM tags WHERE run_uuid = ? AND key = ?", (run_id, key))
        if value != "drop":
            tables.execute("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", (key, value, run_id))
    elif change == "experiment":
        tables.execute("UPDATE experiments SET name = ? WHERE experiment_id = 0", (f"Default {new_id}",))
    elif change == "kind":
        tables.execute("DELETE FROM tags WHERE run_uuid = ? AND key = 'mlmeta.kind'", (run_id,))
    elif change == "every tag":
        tables.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key != 'mlmeta.kind'", (new_id, run_id))
    elif change == "remove":
        for table in ("tags", "runs"):
            tables.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run_id,))
    else:
        column, value = {
            "status": ("status", draw.choice(["FAILED", "RUNNING"])),
            "end": ("end_time", draw.choice([7, None])),
            "name": ("name", draw.choice(["other", None])),
            "stage": ("lifecycle_stage", draw.choice(["deleted", "active"])),
        }[change]
        tables.execute(f"UPDATE runs SET {column} = ? WHERE run_uuid = ?", (value, run_id))


@pytest.mark.parametrize(
    ("tables", "seed"),
    [("scan", seed) for seed in range(3)] + [("rows", seed) for seed in range(12)],
    indirect=["tables"],
)
def test_no_change_is_missed(
    tables: sqlite3.Connection, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    for number in range(12):
        add_rows(tables, f"{number:02}", colour="x")
    load_attempts()
    for step in range(10):
        for number in range(draw.randrange(1, 4)):
            runs = [row[0] for row in tables.execute("SELECT run_uuid FROM runs ORDER BY 1")]
            change_something(tables, draw, draw.choice(runs), f"new-{step}-{number}")
        table = load_attempts()
        attempts = "SELECT run_uuid FROM tags WHERE key = 'mlmeta.kind'"
        there = tables.execute(
            f"SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active' AND run_uuid IN ({attempts})"
        )
        assert set(table["run_id"]) == {row[0] for row in there}
        with monkeypatch.context() as anew:
            anew.setenv("MLMETA_CACHE_DIR", str(tmp_path / "anew"))
            anew.setattr(sql_reader, "SCAN_BYTES", 10**12)
            pd.testing.assert_frame_equal(table, load_attempts(full=True))


def test_whatever_stands_in_a_text_comes_through(tables: sqlite3.Connection) -> None:
    odd = ["", "ü", "a\x1eb", "\x1e", None, "x" * 5000, "line\nbreak", "0.1", "\x1f", "日本", "'", '"', "1", "NaN"]
    for number, text in enumerate(odd):
        add_rows(tables, f"{number:02}", odd=text)
    found = load_attempts().set_index("run_id")["tags.odd"]
    expected = {f"{number:02}": text for number, text in enumerate(odd)}
    assert {key: None if pd.isna(text) else text for key, text in found.items()} == expected


def test_columns_whose_first_rows_have_no_value_are_read(tables: sqlite3.Connection) -> None:
    """Arrow's driver takes the type of a column from the first batch, 65,536 rows."""
    n = 70_000
    add_rows(tables, "first")
    some = [(f"{number:05}", None, number) for number in range(n)]
    tables.execute("BEGIN")
    tables.executemany(
        "INSERT INTO runs (run_uuid, name, start_time, status, lifecycle_stage, experiment_id) "
        "VALUES (?, ?, ?, 'FINISHED', 'active', 0)",
        some,
    )
    ids = [(run_id,) for run_id, *_ in some]
    tables.executemany("INSERT INTO tags (run_uuid, key, value) VALUES (?, 'empty', NULL)", ids)
    metric = "INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, 'loss', ?, 0, 0, ?)"
    tables.executemany(metric, [(run_id, 0, True) for (run_id,) in ids])
    add_rows(tables, "last", empty="no more")
    tables.execute(metric, ("last", 0.5, False))
    tables.execute("COMMIT")
    table = load_attempts(all_runs=True).set_index("run_id")
    assert len(table) == n + 2
    assert table["model_name"].dropna().to_dict() == {"first": "model first", "last": "model last"}
    assert table["tags.empty"].dropna().to_dict() == {"last": "no more"}
    assert table["loss"].dropna().to_dict() == {"last": 0.5}


def test_reading_leaves_the_locks_of_this_process_alone(tables: sqlite3.Connection, tmp_path: Path) -> None:
    """Or another process could take the write-ahead log away, and with it what this one writes later."""
    tables.execute("PRAGMA journal_mode=WAL")
    add_rows(tables, "before")
    load_attempts()
    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM runs').connection.close()"
    subprocess.run([sys.executable, "-c", other, str(tmp_path / "mlflow.db")], check=True)
    add_rows(tables, "after")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as another:
        assert {row[0] for row in another.execute("SELECT run_uuid FROM runs")} == {"before", "after"}
    assert (tmp_path / "mlflow.db-wal").exists()
    assert set(load_attempts()["run_id"]) == {"before", "after"}


@pytest.mark.parametrize("failure", ["missing", "broken", "none"])
def test_rows_are_read_where_arrows_driver_is_not_to_be_had(
    local: MlflowClient, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add_attempt(local, params={"a": "1"})
    monkeypatch.setattr(sql_reader, "SCAN_BYTES", 0)
    if failure == "missing":
        monkeypatch.setattr(sql_reader.importlib.util, "find_spec", lambda name: None)
    elif failure == "broken":
        (tmp_path / "broken.py").write_text("import no_such_driver")
        monkeypatch.setattr(sql_reader, "_SCAN", tmp_path / "broken.py")
    else:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no such program"))
    assert load_attempts()["run_id"].tolist() == [run_id]
