"""What commit 1049834 left on a disk, before the modules moved into packages: it is read and gone on with.

See ``data/before_the_move/README.md``. No module of mlmeta is imported here but the package itself, so that these
tests mean the same wherever its modules lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickletools
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from servers import Server

import mlmeta

DATA = Path(__file__).parent / "data" / "before_the_move"
ANSWERS = json.loads((DATA / "answers.json").read_text())
# Where it was made.
FOLDER = "/tmp/before_the_move"
ADDRESS = "http://127.0.0.1:47612"
N_EPOCH = 48
JOBS = "/ajax-api/mlmeta/jobs"


def unpack(folder: Path) -> None:
    with tarfile.open(DATA / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")


def move(folder: Path, address: str) -> None:
    """Write where the files lie now, and where the server is, in place of where they were made."""
    replaced = {FOLDER: str(folder), ADDRESS: address}
    for file in (folder / "mlflow.db", folder / "queue" / "jobs.db"):
        replace_in_database(file, replaced)
    for file in (folder / "state" / "spool").glob("*/operations.jsonl"):
        for old, new in replaced.items():
            file.write_text(file.read_text().replace(old, new))


def replace_in_database(file: Path, replaced: Mapping[str, str]) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in tables.fetchall():
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.startswith(("TEXT", "VARCHAR")):
                    for old, new in replaced.items():
                        sql = f'UPDATE {table} SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                        connection.execute(sql, (old, new, old))


def as_rows(table: pd.DataFrame) -> Any:
    return json.loads(table.to_json(orient="records", date_format="iso"))


@pytest.fixture(params=["with the kept history", "without it"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of the store alone, as it was left."""
    unpack(tmp_path)
    uri = f"sqlite:///{(tmp_path / 'mlflow.db').resolve()}"
    (kept,) = (tmp_path / "cache" / "history").iterdir()
    # The folder that commit 1049834 would have kept it in, had the store lain here.
    kept.rename(kept.with_name(hashlib.sha256(f"{uri} attempts SqlReader".encode()).hexdigest()[:32]))
    cache = "cache" if request.param == "with the kept history" else "no-cache"
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / cache))
    return uri


def test_the_store_gives_the_answers_that_it_gave(store: str) -> None:
    attempts = mlmeta.load_attempts(store)
    assert as_rows(attempts) == ANSWERS["load_attempts"]
    assert attempts.attrs["kinds"] == ANSWERS["kinds"]
    for text, rows in ANSWERS["search_attempts"].items():
        assert as_rows(mlmeta.search_attempts(text, tracking_uri=store)) == rows, text
    curves = mlmeta.load_curves(list(attempts["run_id"]), tracking_uri=store)
    assert as_rows(curves) == ANSWERS["load_curves"]


@dataclass
class Home:
    """The folder that was left, moved, with a server on its store."""

    folder: Path
    server: Server
    environment: dict[str, str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.server.uri)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mlmeta", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(self, *arguments: str) -> tuple[str, str]:
        """Return what a command that must end well prints, on both streams."""
        process = self.start(*arguments)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out, err

    def find(self, name: str) -> Run:
        (run,) = self.client.search_runs(["0"], f"attributes.run_name = '{name}'")
        return run

    def read_document(self, run: Run, name: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(self.client.download_artifacts(run.info.run_id, name, folder))
            document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return document

    def curve(self, run: Run) -> list[tuple[int, float]]:
        """Return the epochs that the store has of a run, and their losses."""
        history = self.client.get_metric_history(run.info.run_id, "train_loss")
        return sorted((metric.step, metric.value) for metric in history)


def name_parts(colours: Path) -> None:
    """Put the pictures into folders of the parts that commit 1049834 drew: since then a draw keeps to each label."""
    for file in list(colours.glob("*/*.png")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shares = {"test": 0.2, "validation": 0.2}
        part = next((part for part, share in shares.items() if draw_share(digest, part) < share), "train")
        folder = colours / part / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    for folder in colours.iterdir():
        if not list(folder.glob("*/*")):
            shutil.rmtree(folder)


def draw_share(digest: str, part: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{part}:{digest}".encode()).digest()[:8]) / 2**64


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home").resolve()
    unpack(folder)
    folders = {"STATE_DIR": "state", "CACHE_DIR": "cache", "QUEUE_DIR": "queue"}
    environment = {f"MLMETA_{key}": str(folder / name) for key, name in folders.items()}
    options = ["--app-name", "mlmeta", "--workers", "1"]
    settings = {"MLMETA_DATA_ROOT": str(folder), "MLMETA_WORKER": "0", **environment}
    server = Server(folder, f"sqlite:///{folder}/mlflow.db", options=options, environment=settings)
    move(folder, server.uri)
    name_parts(folder / "colours")
    server.start()
    environment = {**os.environ, **environment, "MLFLOW_TRACKING_URI": server.uri}
    yield Home(folder, server, environment)
    server.stop()


@pytest.fixture(scope="module")
def sent(home: Home) -> str:
    """What `mlmeta recover` says; afterwards the store has all that was kept."""
    assert len(home.curve(home.find("cut off"))) < N_EPOCH
    return home.run("recover")[0]


def is_whole(curve: list[tuple[int, float]]) -> bool:
    return [epoch for epoch, _ in curve] == list(range(1, N_EPOCH + 1))


def status_of(run: Run) -> tuple[str, str]:
    return run.info.status, run.data.tags["mlmeta.status"]


@pytest.mark.slow
def test_recover_sends_what_was_kept_while_the_server_was_away(home: Home, sent: str) -> None:
    run = home.find("cut off")
    assert f"sent what was kept of run {run.info.run_id}" in sent
    assert status_of(run) == ("FINISHED", "Complete")
    assert is_whole(home.curve(run))
    assert run.data.metrics["accuracy"] > 0.9
    assert list((home.folder / "state" / "spool").iterdir()) == []
    weights = {file.path for file in home.client.list_artifacts(run.info.run_id, "models")}
    assert weights == {"models/cut off.pt", "models/cut off.safetensors"}
    assert home.read_document(run, "attempt.json")["status"] == "Complete"


def names_of_pickle(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return {str(argument) for code, argument, _ in pickletools.genops(archive.read(name)) if code.name == "GLOBAL"}


@pytest.mark.slow
@pytest.mark.usefixtures("sent")
def test_a_stopped_attempt_goes_on_from_a_checkpoint_that_names_a_class(home: Home) -> None:
    before = home.find("stopped")
    first = home.curve(before)
    assert status_of(before) == ("KILLED", "Interrupted")
    assert 0 < len(first) < N_EPOCH
    checkpoint = home.folder / "state" / "checkpoints" / f"{before.info.run_id}.pt"
    assert "collections Counter" in names_of_pickle(checkpoint)
    out, err = home.run("train", "--resume", "stopped")
    assert f"run {before.info.run_id} in" in out
    assert f"epoch {N_EPOCH}/{N_EPOCH}" in err
    assert f"epoch 1/{N_EPOCH}" not in err
    after = home.find("stopped")
    assert (after.info.run_id, *status_of(after)) == (before.info.run_id, "FINISHED", "Complete")
    curve = home.curve(after)
    assert is_whole(curve)
    assert curve[: len(first)] == first
    # The attempt that was cut off has the same commands, and was trained in one go.
    unbroken = [loss for _, loss in home.curve(home.find("cut off"))]
    assert [loss for _, loss in curve] == pytest.approx(unbroken, rel=0.01)
    assert not checkpoint.exists()


@pytest.mark.slow
def test_waiting_jobs_are_listed_and_worked_on(home: Home) -> None:
    jobs = home.server.ask(JOBS)[1]["jobs"]
    assert [(job["name"], job["kind"], job["state"]) for job in jobs] == [
        ("waiting", "train", "queued"), ("waiting too", "train", "queued"), ("good", "test", "queued"),
    ]  # fmt: skip
    worker = home.start("worker")
    while any(job["state"] in ("queued", "running") for job in home.server.ask(JOBS)[1]["jobs"]):
        assert worker.poll() is None, worker.communicate()
        time.sleep(0.3)
    worker.send_signal(signal.SIGTERM)
    worker.communicate()
    ended = home.server.ask(JOBS)[1]["jobs"]
    assert {(job["state"], job["error"]) for job in ended} == {("done", "")}
    for job in jobs:
        run = home.client.get_run(job["run_id"])
        assert status_of(run) == ("FINISHED", "Complete")
        assert "accuracy" in run.data.metrics
    assert home.client.get_run(jobs[2]["run_id"]).data.params["test.limit"] == "5"


@pytest.mark.slow
def test_a_training_gets_along_with_the_pictures_that_were_kept(home: Home) -> None:
    good = home.find("good")
    commands = home.read_document(good, "train_commands.json")
    (home.folder / "new.json").write_text(json.dumps({**commands, "model_name": "new"}))
    home.run("cache")
    home.run("train", "new.json")
    losses = [run.data.metrics["train_loss"] for run in (home.find("new"), good)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert re.search(r"\b36 +6×6×3 ", home.run("cache")[0])
    assert "removed" in home.run("cache", "--clear")[0]
