"""How long it takes to read all attempts, beside MLflow's own search; a table a size, one JSON line.

    python benchmarks/history_speed.py [--sizes 1000,10000,100000] [--repeats 5] [--search-up-to 100000]

A SQLite store is filled by bulk insert with attempts of 40 params, 5 metrics and curves of 20 epochs; from then on it
is read by public means only, each in a process of its own. From 100,000 attempts on, the epochs of one metric only are
inserted: five would be 10 million rows. MLflow's search of 100,000 takes minutes and is done once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

N_EPOCHS = 20
METRICS = ("train_loss", "val_loss", "val_accuracy", "accuracy", "epoch_seconds")
NAMES = ("SGD", "Adam", "AdamW", "RMSprop")
FILTER = "optimizer.lr < 1e-2 and (accuracy >= .8 or status = 'Diverged') and arch.batch_norm = true"
# What DESIGN asks for at 100,000 attempts: search_runs / warm at least, warm and adding 100 in seconds at most.
TARGETS = {"search_to_warm": 100, "warm_s": 1.0, "add_100_s": 1.0}
_START_MS = 1_700_000_000_000


def make_params(draw: random.Random) -> dict[str, str]:
    """Return 40 params as real attempts have them: few numbers that differ, names, and what is always the same."""
    params = {
        "optimizer.name": draw.choice(NAMES),
        "optimizer.lr": repr(10 ** draw.uniform(-5, -0.5)),
        "optimizer.weight_decay": repr(10 ** draw.uniform(-6, -2)),
        "batch_size": str(draw.choice((8, 16, 32, 64))),
        "seed": str(draw.randrange(1000)),
        "n_epoch": str(N_EPOCHS),
        "data.path": f"tasks/task-{draw.randrange(50)}",
        "arch.batch_norm": draw.choice(("true", "false")),
        "arch.depth": str(draw.randrange(2, 9)),
        "arch.n_parameters": str(draw.randrange(10**4, 10**6)),
    }
    for index in range(15):
        params[f"model.layers.{index}.name"] = draw.choice(("Conv2d", "ReLU", "MaxPool2d", "Linear", "Dropout"))
        params[f"model.layers.{index}.out_channels"] = str(draw.choice((8, 16, 32, 64)))
    return params


def make_attempts(n: int, *, seed: int, all_curves: bool) -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """Yield the rows of one attempt after the other, by table."""
    draw = random.Random(seed)
    for number in range(n):
        run_id = uuid.UUID(int=draw.getrandbits(128)).hex
        start_ms = _START_MS + 1000 * number
        losses = [round(2.5 / (1 + draw.random() * epoch), 6) for epoch in range(N_EPOCHS)]
        last = {metric: draw.random() for metric in METRICS} | {"train_loss": losses[-1]}
        task = f"{draw.randrange(50):064x}"
        tags = {
            "mlmeta.kind": "attempt",
            "mlmeta.status": "Diverged" if draw.random() < 0.02 else "Complete",
            "mlmeta.task_digest": task,
            "mlmeta.commands_digest": f"{draw.getrandbits(256):064x}",
            "mlmeta.training_losses": json.dumps(losses),
            "mlflow.user": "benchmark",
            "mlflow.note.content": "Complete: an attempt of the benchmark. " * 10,
        }
        curves = METRICS if all_curves else METRICS[:1]
        history = [
            (
                metric,
                losses[epoch] if metric == "train_loss" else draw.random(),
                start_ms + epoch,
                run_id,
                epoch + 1,
                False,
            )
            for metric in curves
            for epoch in range(N_EPOCHS)
        ]
        yield {
            "runs": [(run_id, f"model-{number % 1000}", "LOCAL", "", "", "benchmark", "FINISHED", start_ms,
                      start_ms + 60_000, "", "active", f"artifacts/{run_id}", 0)],
            "params": [(key, value, run_id) for key, value in make_params(draw).items()],
            "tags": [(key, value, run_id) for key, value in tags.items()],
            "latest_metrics": [(key, value, start_ms, N_EPOCHS, False, run_id) for key, value in last.items()],
            "metrics": history,
        }  # fmt: skip


COLUMNS = {
    "runs": "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
    "source_version, lifecycle_stage, artifact_uri, experiment_id",
    "params": "key, value, run_uuid",
    "tags": "key, value, run_uuid",
    "latest_metrics": "key, value, timestamp, step, is_nan, run_uuid",
    "metrics": "key, value, timestamp, run_uuid, step, is_nan",
}


def fill(file: Path, n: int, *, seed: int, all_curves: bool) -> None:
    """Insert attempts into a SQLite store."""
    connection = sqlite3.connect(file)
    connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-500000;")
    held: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
    for number, rows in enumerate(make_attempts(n, seed=seed, all_curves=all_curves), start=1):
        for table, some in rows.items():
            held[table] += some
        if number % 1000 == 0 or number == n:
            for table, columns in COLUMNS.items():
                marks = ", ".join("?" * (columns.count(",") + 1))
                connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", held[table])
                held[table].clear()
    connection.commit()
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def timed(action: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return the seconds that an action takes, those of processors in all its processes, and what it gives."""
    started, before = time.perf_counter(), os.times()
    result = action()
    return time.perf_counter() - started, sum(os.times()[:4]) - sum(before[:4]), result


def peak_megabytes() -> float:
    """Return the most memory that this process had; what getrusage says is handed down by the parent on Linux."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_step(step: str) -> dict[str, float]:
    """Do one thing in this process, and return its seconds, how many attempts it saw, and the peak of its memory."""
    import mlflow

    from mlmeta.history.loading import load_attempts, load_curves
    from mlmeta.meta_query import hyperparameter_importance, search_attempts

    load_attempts(f"sqlite:///{Path.cwd() / 'small.db'}")  # libraries are loaded by now
    base_mb = peak_megabytes()
    if step == "read":
        seconds, cpu, result = timed(load_attempts)
    elif step == "filter":
        history = load_attempts()
        seconds, cpu, result = timed(lambda: search_attempts(FILTER, history=history))
    elif step == "curves":
        history = load_attempts().head(1000)
        seconds, cpu, result = timed(lambda: load_curves(history["run_id"].tolist()))
    elif step == "importance":
        history = load_attempts().head(10_000)
        seconds, cpu, result = timed(lambda: hyperparameter_importance("accuracy", history=history))
    elif step == "search_runs":
        seconds, cpu, result = timed(lambda: mlflow.search_runs(["0"], max_results=10**6))
    else:
        runs = load_attempts()["run_id"].head(20).tolist()
        client = mlflow.MlflowClient()
        seconds, cpu, result = timed(lambda: [client.get_metric_history(run_id, "train_loss") for run_id in runs])
    peak_mb = peak_megabytes()
    return {"seconds": seconds, "cpu": cpu, "n": len(result), "peak_mb": peak_mb - base_mb}


def in_process(step: str, *, repeats: int = 1) -> dict[str, float]:
    """Return the medians of a step done in processes of their own."""
    runs = []
    sys.stderr.write(f"{step} × {repeats}\n")
    for _ in range(repeats):
        command = [sys.executable, __file__, "--step", step]
        runs.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def measure_size(n: int, folder: Path, template: Path, *, repeats: int, search_up_to: int) -> dict[str, Any]:
    """Return all figures at one number of attempts."""
    file = folder / "mlflow.db"
    shutil.copy(template, file)
    fill(file, n, seed=0, all_curves=n < 100_000)
    # Older than a file that may still be written to.
    time.sleep(3)
    cache = Path(os.environ["MLMETA_CACHE_DIR"])
    firsts = []
    for _ in range(min(repeats, 3)):
        shutil.rmtree(cache, ignore_errors=True)
        firsts.append(in_process("read"))
    figures: dict[str, Any] = {"n": n, "megabytes": file.stat().st_size / 1e6}
    figures["first_s"] = statistics.median(one["seconds"] for one in firsts)
    figures["first_cpu_s"] = statistics.median(one["cpu"] for one in firsts)
    figures["first_mb"] = statistics.median(one["peak_mb"] for one in firsts)
    warm = in_process("read", repeats=repeats)
    assert warm["n"] == n
    figures |= {"warm_s": warm["seconds"], "warm_mb": warm["peak_mb"]}
    figures["filter_s"] = in_process("filter", repeats=repeats)["seconds"]
    figures["curves_1000_s"] = in_process("curves", repeats=repeats)["seconds"]
    figures["importance_s"] = in_process("importance")["seconds"]
    figures["get_metric_history_20_s"] = in_process("history")["seconds"]
    added = []
    for number in range(repeats):
        fill(file, 100, seed=number + 1, all_curves=False)
        added.append(in_process("read"))
    assert added[-1]["n"] == n + 100 * repeats
    figures["add_100_s"] = statistics.median(one["seconds"] for one in added)
    figures["add_100_cpu_s"] = statistics.median(one["cpu"] for one in added)
    if n <= search_up_to:
        search = in_process("search_runs", repeats=1 if n >= 10_000 else repeats)
        figures |= {"search_runs_s": search["seconds"], "search_runs_mb": search["peak_mb"]}
        figures["search_to_first"] = search["seconds"] / figures["first_s"]
        figures["search_to_warm"] = search["seconds"] / figures["warm_s"]
    return figures


def print_table(results: list[dict[str, Any]]) -> None:
    """Print the figures, a column a size."""
    print(f"{'':28}" + "".join(f"{one['n']:>14,}" for one in results))
    for key in [key for key in results[-1] if key != "n"]:
        target = f"  (to reach at 100,000: {TARGETS[key]})" if key in TARGETS else ""
        print(f"{key:28}" + "".join(f"{one.get(key, float('nan')):>14.4g}" for one in results) + target)


def main() -> None:
    """Measure all sizes in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--search-up-to", type=int, default=100_000, help="Do MLflow's own search up to this size.")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(run_step(given.step)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        os.environ["MLMETA_CACHE_DIR"] = str(folder / "cache")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        template = folder / "template.db"
        from mlmeta.tracking.store import open_client

        open_client(f"sqlite:///{template}")
        shutil.copy(template, folder / "small.db")
        fill(folder / "small.db", 20, seed=99, all_curves=True)
        options = {"repeats": given.repeats, "search_up_to": given.search_up_to}
        results = [measure_size(int(n), folder, template, **options) for n in given.sizes.split(",")]
        print_table(results)
        print(json.dumps({"sizes": results}))


if __name__ == "__main__":
    main()
