"""What `mlmeta train digits.json` costs beside the training itself; one table, one JSON line.

    python benchmarks/train_start.py [--runs 5] [--threads 1]

CPU seconds (user + system), wall seconds and peak memory of whole processes, medians, each measured in turn:

- ``import torch, mlflow``: the floor, which no training that is recorded goes below;
- a first attempt on a task, whose pictures and meta-features nobody has kept yet;
- another attempt on that task.

The training itself is the processor time of the epochs' own thread. With one thread, torch's loops run in it, so that
the rest is the start, the records, the test and the end. The tracking store is there before anything is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parent.parent
TARGETS = {"beside_cpu_s": 5.0, "peak_mb": 950}
COLUMNS = ("first_cpu_s", "first_wall_s", "cpu_s", "wall_s", "beside_cpu_s", "peak_mb")

_LOOK = """
import json, os, resource, sys, time

def look():
    return {"cpu_s": time.process_time(), "wall_s": time.time() - float(os.environ["STARTED"])}

def end(**more):
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\\n" + json.dumps({**look(), "peak_mb": peak_mb, **more}))
"""
FLOOR = f"{_LOOK}\nimport torch, mlflow\nend()"
TRAIN = f"""{_LOOK}
from mlmeta.training import loop

run_epoch, epochs, first = loop.run_epoch, [], {{}}

def timed(*arguments):
    began = time.thread_time()
    metrics = run_epoch(*arguments)
    epochs.append(time.thread_time() - began)
    first.update(first or look())
    return metrics

loop.run_epoch = timed
from mlmeta.train import train
train(sys.argv[1:], standalone_mode=False)
end(first_cpu_s=first["cpu_s"], first_wall_s=first["wall_s"], beside_cpu_s=time.process_time() - sum(epochs))
"""


def run_child(code: str, *arguments: str, folder: Path, threads: int) -> dict[str, float]:
    """Run a program in a process of its own; return what it says on its last line."""
    environment = os.environ | {
        "STARTED": str(time.time()),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(PROJECT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLMETA_STATE_DIR": str(folder / "state"),
        "MLMETA_CACHE_DIR": str(folder / "cache"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def forget_pictures(folder: Path) -> None:
    """Make the next attempt the first one on its task."""
    (folder / "cache").rename(folder / f"cache-{time.time_ns()}")


def main() -> None:
    """Run each in turn, several times over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="?", type=Path, default=PROJECT / "digits.json")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    config = str(options.commands.resolve())
    rows: dict[str, list[dict[str, float]]] = {"import torch, mlflow": [], "first attempt": [], "another attempt": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for run in range(options.runs + 1):
            if run:
                forget_pictures(folder)
            measured = [
                run_child(FLOOR, folder=folder, threads=options.threads),
                run_child(TRAIN, config, folder=folder, threads=options.threads),
                run_child(TRAIN, config, folder=folder, threads=options.threads),
            ]
            for taken, one in zip(rows.values(), measured, strict=True):
                # The first round makes the store, and brings the files of all libraries into memory.
                taken += [one] if run else []
    print(f"{options.commands.name}, {options.threads} thread(s), median of {options.runs}")
    print(f"{'':22}" + "".join(f"{column:>14}" for column in COLUMNS))
    medians = {}
    for name, taken in rows.items():
        medians[name] = {key: round(statistics.median(one[key] for one in taken), 2) for key in taken[0]}
        print(f"{name:22}" + "".join(f"{medians[name].get(column, ''):>14}" for column in COLUMNS))
    print(json.dumps({"targets": TARGETS, "threads": options.threads, **medians}))


if __name__ == "__main__":
    main()
