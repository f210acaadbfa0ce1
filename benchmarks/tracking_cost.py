"""Share of a run's time that goes into MLflow: on SQLite and on a real server, beside a recorder in memory.

Every repetition trains the same attempt with each recorder in turn. Two shares are told: the difference of the total
times, which is as noisy as the machine, and an upper bound that is not: all that the attempt waits for the recorder at
its start, in its loop and at its end, and the processor time of the thread that sends. Prints a table and one line
of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow

import mlmeta.tracking.recorder
from mlmeta.commands.parsing import load_train_commands
from mlmeta.status import Status
from mlmeta.tracking.recorder import MlflowRecorder
from mlmeta.tracking.runs import record_attempt
from mlmeta.training.loop import train_attempt
from mlmeta.training.preparation import prepare_training

PROJECT = Path(__file__).parent.parent
TARGET_PERCENT = 2.0


class TimedRecorder:
    """Passes metrics on, and adds up how long that takes the training loop."""

    def __init__(self, log_metrics: Callable[..., None]) -> None:
        self._log_metrics = log_metrics
        self.seconds = 0.0

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Record one epoch."""
        started = time.perf_counter()
        self._log_metrics(metrics, step=step)
        self.seconds += time.perf_counter() - started


class TimedSending:
    """Sends as mlmeta does, and adds up the processor seconds that it takes in the sending thread."""

    def __init__(self) -> None:
        self._send = mlmeta.tracking.recorder.send_operation
        self.seconds = 0.0
        self.n_requests = 0

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Send one operation."""
        started = time.thread_time()
        try:
            self._send(*arguments, **named)
        finally:
            self.seconds += time.thread_time() - started
            self.n_requests += 1


def measure(document: Path, n_epoch: int, *, in_mlflow: bool) -> dict[str, float]:
    """Train once; return the seconds from the first word to the recorder to the last, and of parts.

    Args:
        document: The train commands.
        n_epoch: Instead of theirs.
        in_mlflow: Record in the tracking store that MLflow's settings name, or only in memory.
    """
    commands = load_train_commands(document).model_copy(update={"n_epoch": n_epoch})
    prepared = prepare_training(commands, base_dir=document.parent)
    sending = TimedSending()
    mlmeta.tracking.recorder.send_operation = sending  # type: ignore[assignment]
    started = time.perf_counter()
    if in_mlflow:
        with record_attempt(commands, base_dir=document.parent) as recorder:
            before = time.perf_counter()
            hot_path = _train(prepared, recorder)
            trained = time.perf_counter()
    else:
        taken: list[Any] = []
        before = time.perf_counter()
        hot_path = TimedRecorder(lambda metrics, step: taken.append((step, metrics)))
        train_attempt(prepared, hot_path)
        trained = time.perf_counter()
    ended = time.perf_counter()
    mlmeta.tracking.recorder.send_operation = sending._send
    waits_s = (before - started) + hot_path.seconds + (ended - trained)
    return {
        "total_s": ended - started,
        "start_s": before - started,
        "training_s": trained - before,
        "end_s": ended - trained,
        "sending_s": sending.seconds,
        "n_operations": sending.n_requests,
        "hot_path_ms": 1000 * hot_path.seconds / n_epoch,
        "bound_percent": 100 * (waits_s + sending.seconds) / (ended - started),
    }


def _train(prepared: Any, recorder: MlflowRecorder) -> TimedRecorder:
    recorder.set_status(Status.TRAINING)
    hot_path = TimedRecorder(recorder.log_metrics)
    trained = train_attempt(prepared, hot_path)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("weights.pt", "weights.safetensors", "loss_curve.png"):
            (Path(folder) / name).write_bytes(b"0" * 4 * sum(tensor.numel() for tensor in trained.state.values()))
        recorder.log_files(Path(folder))
    recorder.set_status(Status.TRAINED)
    return hot_path


@contextlib.contextmanager
def run_server(folder: Path) -> Iterator[str]:
    """Run a tracking server with one worker on the loopback; give its URI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "a"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def compare(document: Path, n_epoch: int, repeats: int, uris: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return the medians of each recorder over interleaved repetitions; one training before is not counted."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ("memory", *uris)}
    for uri in uris.values():
        mlflow.set_tracking_uri(uri)
        measure(document, 2, in_mlflow=True)
    for _ in range(repeats):
        for name, results in taken.items():
            if name in uris:
                mlflow.set_tracking_uri(uris[name])
            results.append(measure(document, n_epoch, in_mlflow=name in uris))
    return {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in taken.items()
    }


def main() -> None:
    """Run it and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="?", type=Path, default=PROJECT / "digits.json")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MLMETA_STATE_DIR"] = str(folder / "state")
        with run_server(folder) as server:
            uris = {"sqlite": f"sqlite:///{folder / 'mlflow.db'}", "server": server}
            medians = compare(options.commands.resolve(), options.epochs, options.repeats, uris)
    memory_s = medians["memory"]["total_s"]
    print(f"{options.commands.name}, {options.epochs} epochs, median of {options.repeats}")
    print("recorder   total s  start s  training s  end s  sending s  difference %  at most %  ms an epoch in the loop")
    for name, figures in medians.items():
        figures["share_percent"] = 100 * (figures["total_s"] - memory_s) / figures["total_s"]
        print(
            f"{name:8} {figures['total_s']:9.2f} {figures['start_s']:8.2f} {figures['training_s']:11.2f} "
            f"{figures['end_s']:6.2f} {figures['sending_s']:10.2f} {figures['share_percent']:13.1f} "
            f"{figures['bound_percent']:10.1f} {figures['hot_path_ms']:12.4f}"
        )
    print(json.dumps({"target_percent": TARGET_PERCENT, "n_epoch": options.epochs, **medians}))


if __name__ == "__main__":
    main()
