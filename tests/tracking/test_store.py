"""Opening a tracking store: what it is named, its log, many processes on a new one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from mlmeta.errors import MlmetaError, NotFoundError
from mlmeta.tracking.attempts import read_text
from mlmeta.tracking.store import open_client, sqlite_file, store_key

# What one process does: a small attempt without a training.
PROGRAM = """
from pathlib import Path
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.status import Status
from mlmeta.tracking.runs import record_attempt
layers = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": "n_labels"}]
document = {"model_name": "together", "label_names": ["a", "b"], "model": {"layers": layers}}
with record_attempt(parse_train_commands(document), base_dir=Path()) as recorder:
    recorder.set_status(Status.TRAINING)
    for step in range(1, 21):
        recorder.log_metrics({"train_loss": 1 / step, "val_loss": 2 / step}, step=step)
    recorder.set_status(Status.TRAINED)
"""


def test_an_opened_sqlite_store_has_a_write_ahead_log(store: str) -> None:
    open_client()
    with closing(sqlite3.connect(sqlite_file(store) or "")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.slow
def test_eight_processes_that_start_together_on_a_new_store_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(8)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    assert [error for error in errors if "locked" in error or "mlmeta:" in error] == []
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM metrics WHERE key = 'train_loss'").fetchone() == (160,)
        assert connection.execute("SELECT count(*) FROM metrics WHERE key = 'val_loss'").fetchone() == (160,)
        assert connection.execute("SELECT count(DISTINCT run_uuid) FROM metrics").fetchone() == (8,)
        assert connection.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone() == (8,)


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("http://host:5000/", "http://host:5000"),
        ("https://me:secret@host/prefix", "https://host/prefix"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_a_store_has_one_name(uri: str, key: str) -> None:
    assert store_key(uri) == key


def test_a_relative_store_is_named_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_key("sqlite:///mlflow.db") == f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"


def test_a_store_in_no_folder_is_refused(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'missing' / 'mlflow.db'}")
    with pytest.raises(MlmetaError, match="not a folder"):
        open_client()


def test_a_server_that_is_away_is_named_at_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(MlmetaError, match=r"http://127\.0\.0\.1:9 cannot be opened"):
        open_client()


def test_what_is_no_store_is_said_to_be_none_and_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database " * 100)
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection, connection:
        connection.execute("CREATE TABLE addresses (name TEXT)")
    for name, says in (
        ("notes.db", "is no SQLite database"),
        ("other.db", "of another program, without MLflow's tables"),
    ):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(MlmetaError, match=says):
            open_client(f"sqlite:///{tmp_path / name}")
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("mysql://me:secret@localhost/x", r"mysql://me:\*\*\*@localhost/x cannot be opened: its driver MySQLdb is not"),
        ("postgresql+psycopg2://localhost/x", r"psycopg2 is not installed; pip install 'mlmeta\[postgresql\]'"),
    ],
)
def test_a_driver_that_is_missing_is_named_and_no_password(uri: str, says: str) -> None:
    with pytest.raises(MlmetaError, match=says) as caught:
        open_client(uri)
    assert "secret" not in str(caught.value)


def test_a_store_that_was_moved_says_where_its_artifacts_were(store: str, tmp_path: Path) -> None:
    client = open_client()
    experiment = client.create_experiment("moved", artifact_location=str(tmp_path / "before" / "1"))
    run_id = client.create_run(experiment).info.run_id
    with pytest.raises(NotFoundError, match=r"ln -s NEW '.*/before/1'"):
        read_text(client, run_id, "train_commands.json")
    client.log_text(run_id, "{}", "other.json")
    with pytest.raises(NotFoundError) as caught:
        read_text(client, run_id, "train_commands.json")
    assert "ln -s" not in str(caught.value)


def test_an_artifact_of_a_run_that_is_not_there_is_not_found(store: str) -> None:
    with pytest.raises(NotFoundError, match="has no artifact"):
        read_text(open_client(), "0" * 32, "train_commands.json")
