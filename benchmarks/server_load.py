"""What the server answers under load: many readers and a few writers at once. Prints a table and a JSON line.

    python benchmarks/server_load.py [--attempts 10000] [--seconds 60] [--readers 50] [--writers 5] [--workers 4]

A SQLite store is filled with attempts and served by `mlflow server --app-name mlmeta`; its runner trains what the
writers post, one at once. Readers ask one question after another, without a pause, each on a connection that it keeps.
Afterwards as many readers ask MLflow's own search API for the same page of attempts, in the same server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

API = "/ajax-api/mlmeta"
N_TASKS = 20
_TRAINING = {
    "label_names": [str(digit) for digit in range(10)],
    "data": {"source": "sample", "name": "digits"},
    "transform": {"ToTensor": True},
    "model": {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]},
    "optimizer": {"name": "SGD", "lr": 0.1},
    "batch_size": 32,
    "n_epoch": 2,
}


class Server:
    """The server that is measured."""

    def __init__(self, folder: Path, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "mlmeta", "--port", str(self.port)]
        command += ["--workers", str(workers), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLMETA_MAX_QUEUE": "100000"}
        environment |= {"MLMETA_STATE_DIR": str(folder / "state"), "MLMETA_CACHE_DIR": str(folder / "cache")}
        log = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        while self.ask("GET", "/health")[0] != 200:
            if self.process.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.2)

    def ask(self, method: str, path: str, document: Any = None) -> tuple[int, bytes]:
        """Return status and body; status 0 where there is no server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            return send(connection, method, path, document)
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def stop(self) -> None:
        """End it with all that it has started."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()

    def measure_memory_mb(self) -> float:
        """Return the resident memory of the server's processes, without the runner and its trainings."""
        pids = {self.process.pid} | set(_list_children(self.process.pid))
        return sum(_read_rss_kb(pid) for pid in pids) / 1024


def _list_children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    own = [int(row[0]) for row in rows if int(row[1]) == pid and "mlmeta worker" not in row[2]]
    return own + [grandchild for child in own for grandchild in _list_children(child)]


def _read_rss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def send(connection: http.client.HTTPConnection, method: str, path: str, document: Any) -> tuple[int, bytes]:
    """Ask on a connection that is kept."""
    body = None if document is None else json.dumps(document)
    connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def fill_store(folder: Path, n_attempts: int) -> list[str]:
    """Make a store of attempts on some tasks; return some of their run ids."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    client.search_experiments()
    draw = np.random.default_rng(0)
    first = client.create_run("0", run_name="attempt-0", tags={"mlmeta.kind": "attempt"})
    now = first.info.start_time
    run_id = first.info.run_id
    params = {f"model.layers.{i}.name": "ReLU" for i in range(25)} | {"optimizer.name": "SGD", "batch_size": "32"}
    params |= {"optimizer.lr": "0.1", "n_epoch": "5", "data.name": "t0", "task.n_train": "100", "task.n_labels": "5"}
    client.log_batch(
        run_id,
        metrics=[Metric("accuracy", 0.5, now, 0), *(Metric("train_loss", 2 / step, now, step) for step in range(1, 6))],
        params=[Param(key, value) for key, value in params.items()],
        tags=[
            RunTag("mlmeta.status", "Complete"),
            RunTag("mlmeta.task_digest", "d0"),
            RunTag("mlmeta.task_name", "t0"),
        ],
    )
    client.set_terminated(run_id)
    return _multiply(folder / "mlflow.db", run_id, n_attempts, draw)


def _multiply(file: Path, run_id: str, n: int, draw: np.random.Generator) -> list[str]:
    """Copy a run's rows: MLflow itself would take an hour to make ten thousand."""
    import sqlite3

    ids = [f"{i:032x}" for i in range(1, n)]
    with sqlite3.connect(file) as store:
        for table, column in (("runs", "run_uuid"), ("params", "run_uuid"), ("tags", "run_uuid"),
                              ("metrics", "run_uuid"), ("latest_metrics", "run_uuid")):  # fmt: skip
            cursor = store.execute(f"SELECT * FROM {table} WHERE {column} = ?", (run_id,))
            names = [one[0] for one in cursor.description]
            rows = cursor.fetchall()
            marks = ",".join("?" * len(names))
            store.executemany(
                f"INSERT INTO {table} VALUES ({marks})",
                (_change(table, names, row, new, i, draw) for i, new in enumerate(ids) for row in rows),
            )
    return ids[:200]


def _change(
    table: str, names: list[str], row: tuple[Any, ...], run_id: str, i: int, draw: np.random.Generator
) -> list[Any]:
    values = dict(zip(names, row, strict=True)) | {"run_uuid": run_id}
    key, task = values.get("key"), i % N_TASKS
    if table == "runs":
        values |= {"name": f"attempt-{i}", "start_time": values["start_time"] - 1000 * i}
        values["artifact_uri"] = values["artifact_uri"].replace(row[names.index("run_uuid")], run_id)
    elif key in ("mlmeta.task_digest", "mlmeta.task_name", "data.name"):
        values["value"] = ("d" if key == "mlmeta.task_digest" else "t") + str(task)
    elif key == "optimizer.lr":
        values["value"] = str(10 ** draw.uniform(-4, -1))
    elif key == "accuracy":
        values["value"] = float(draw.uniform())
    return [values[name] for name in names]


class Load:
    """Clients that ask without a pause, and what they were answered."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.until = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.times: dict[str, list[float]] = {}
        self.statuses: Counter[str] = Counter()

    def run(self, clients: list[Callable[[Load], None]]) -> None:
        """Start the clients and wait for their end."""
        threads = [threading.Thread(target=client, args=(self,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def ask(self, connection: http.client.HTTPConnection, kind: str, method: str, path: str, document: Any) -> None:
        """Ask once and note how long it took."""
        started = time.perf_counter()
        try:
            status, _ = send(connection, method, path, document)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            status = type(error).__name__
        took = time.perf_counter() - started
        with self.lock:
            self.times.setdefault(kind, []).append(took)
            self.statuses[str(status)] += 1


def read_ours(run_ids: list[str], seed: int) -> Callable[[Load], None]:
    """Return a reader of what the page shows."""

    def client(load: Load) -> None:
        draw = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", load.server.port, timeout=120)
        while time.monotonic() < load.until:
            task, run_id = f"t{draw.integers(N_TASKS)}", run_ids[draw.integers(len(run_ids))]
            wanted = quote(f"accuracy > 0.9 and task = '{task}'")
            paths = {
                "attempts": f"/attempts?limit=50&order_by=accuracy%20DESC&filter={wanted}",
                "leaderboard": f"/leaderboard?task={task}",
                "curves": f"/curves?run_id={run_id}&metric=train_loss",
                "jobs": "/jobs?limit=20",
            }
            kind = list(paths)[draw.integers(len(paths))]
            load.ask(connection, kind, "GET", API + paths[kind], None)

    return client


def write_ours(number: int) -> Callable[[Load], None]:
    """Return a writer that posts an attempt every second."""

    def client(load: Load) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", load.server.port, timeout=120)
        n = 0
        while time.monotonic() < load.until:
            commands = {**_TRAINING, "model_name": f"load-{number}-{n}"}
            load.ask(connection, "post attempts", "POST", f"{API}/attempts", commands)
            n += 1
            time.sleep(1.0)

    return client


def read_theirs(seed: int) -> Callable[[Load], None]:
    """Return a reader who asks MLflow for the page of attempts that `read_ours` asks for."""

    def client(load: Load) -> None:
        draw = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", load.server.port, timeout=300)
        while time.monotonic() < load.until:
            task = f"t{draw.integers(N_TASKS)}"
            document = {
                "experiment_ids": ["0"], "max_results": 50, "order_by": ["metrics.accuracy DESC"],
                "filter": f"metrics.accuracy > 0.9 and tags.`mlmeta.task_name` = '{task}'",
            }  # fmt: skip
            load.ask(connection, "runs/search", "POST", "/ajax-api/2.0/mlflow/runs/search", document)

    return client


def summarise(load: Load, seconds: float) -> list[dict[str, Any]]:
    """Return one row a kind of request, and one for all."""
    kinds = {**load.times, "all": [took for times in load.times.values() for took in times]}
    return [
        {
            "request": kind,
            "answers_per_s": round(len(times) / seconds, 1),
            "median_ms": round(1000 * float(np.median(times)), 1),
            "p99_ms": round(1000 * float(np.quantile(times, 0.99)), 1),
        }
        for kind, times in kinds.items()
    ]


def print_table(title: str, rows: list[dict[str, Any]], load: Load) -> None:
    """Print what was measured, and every status that was answered."""
    print(f"\n{title}: statuses {dict(load.statuses)}")
    for row in rows:
        print(f"  {row['request']:<16}{row['answers_per_s']:>9}/s  median {row['median_ms']:>8} ms  "
              f"99 % {row['p99_ms']:>8} ms")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--writers", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mlmeta-load-"))
    run_ids = fill_store(folder, given.attempts)
    server = Server(folder, given.workers)
    try:
        server.ask("GET", f"{API}/attempts")
        before = server.measure_memory_mb()
        ours = Load(server, given.seconds)
        ours.run([read_ours(run_ids, i) for i in range(given.readers)] + [write_ours(i) for i in range(given.writers)])
        memory = server.measure_memory_mb()
        theirs = Load(server, given.seconds)
        theirs.run([read_theirs(i) for i in range(given.readers)])
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    ours_rows, theirs_rows = summarise(ours, given.seconds), summarise(theirs, given.seconds)
    print_table("mlmeta's routes", ours_rows, ours)
    print_table("MLflow's own search", theirs_rows, theirs)
    attempts = next(row for row in ours_rows if row["request"] == "attempts")
    result = {
        "attempts": given.attempts, "workers": given.workers, "ours": ours_rows, "mlflow": theirs_rows,
        "memory_mb": [round(before), round(memory)], "statuses": dict(ours.statuses),
        "median_ratio_mlflow_to_ours": round(theirs_rows[0]["median_ms"] / attempts["median_ms"], 1),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
