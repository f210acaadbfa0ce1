"""How long a recommendation takes, and the description of a task that it begins with; one table.

    python benchmarks/recommend_speed.py [--sizes 1000,100000] [--repeats 3] [--pictures 5000]

Stores as those of history_speed.py are read and recommended from by processes of their own: `mlmeta recommend` as a
user calls it, on digits.json, with what it learnt of the history kept or not, beside the mere reading of that history.
The pictures are noise of the given sizes: what is computed of them does not depend on what they show.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from history_speed import fill

COMMANDS = Path(__file__).parent.parent / "digits.json"
LABELS = 10
READ = (
    "import time; from mlmeta.history.loading import load_attempts; began = time.perf_counter(); load_attempts(); "
    "print(time.perf_counter() - began)"
)
# Whole processes: both import what they need.
SECONDS_ALLOWED, DESCRIPTION_ALLOWED = 10.0, 2.0


def run_timed(command: Sequence[str]) -> tuple[float, str]:
    """Return the seconds that a process takes, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def measure_size(n: int, template: Path, folder: Path, *, repeats: int) -> list[tuple[str, str, float, float, str]]:
    """Return rows of the table for a store of n attempts."""
    file, cache = folder / "mlflow.db", Path(os.environ["MLMETA_CACHE_DIR"])
    shutil.copy(template, file)
    fill(file, n, seed=0, all_curves=n < 100_000)
    # Older than a file that may still be written to.
    time.sleep(3)
    recommend = [sys.executable, "-m", "mlmeta", "recommend", str(COMMANDS), "-n", "5"]
    read = [sys.executable, "-c", READ]
    rows = []
    for state in ("cold", "warm"):
        totals, readings = [], []
        for _ in range(repeats if state == "warm" else 1):
            for command, seconds in ((read, readings), (recommend, totals)):
                if state == "cold":
                    shutil.rmtree(cache / "history", ignore_errors=True)
                took, printed = run_timed(command)
                seconds.append(float(printed) if command is read else took)
        total, reading = statistics.median(totals), statistics.median(readings)
        rows.append((f"recommend, {n:,} attempts", f"history {state}", total, total / reading, f"{SECONDS_ALLOWED:g}"))
    return rows


def measure_description(n: int, edge: int, *, repeats: int) -> tuple[str, str, float, float, str]:
    """Return the row of the table for the meta-features of n pictures."""
    from mlmeta.data.metafeatures import describe_pictures

    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, size=(n, edge, edge, 3), dtype=np.uint8))
    labels = [number % LABELS for number in range(n)]
    # What is imported at first use is not counted.
    first = describe_pictures(images[:100], labels[:100], n_labels=LABELS)
    seconds, found = [], [first]
    for _ in range(repeats):
        began = time.perf_counter()
        found.append(describe_pictures(images, labels, n_labels=LABELS))
        seconds.append(time.perf_counter() - began)
    assert all(one == found[1] for one in found[2:])
    name = f"meta-features, {n:,} pictures"
    return name, f"{edge}×{edge}", statistics.median(seconds), float("nan"), f"{DESCRIPTION_ALLOWED:g}"


def print_table(rows: Sequence[tuple[str, str, float, float, str]]) -> None:
    """Print the rows in Markdown."""
    print("| what | with | seconds | ÷ reading the history | allowed |\n|---|---|---|---|---|")
    for what, given, seconds, ratio, allowed in rows:
        print(f"| {what} | {given} | {seconds:.2f} | {'' if np.isnan(ratio) else f'{ratio:.1f}'} | {allowed} |")


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,100000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=5000)
    given = parser.parse_args()
    rows = [measure_description(given.pictures, edge, repeats=given.repeats) for edge in (32, 64)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MLMETA_CACHE_DIR"] = str(folder / "cache")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        template = folder / "template.db"
        from mlmeta.tracking.store import open_client

        open_client(f"sqlite:///{template}")
        for n in given.sizes.split(","):
            rows += measure_size(int(n), template, folder, repeats=given.repeats)
    print_table(rows)
    names = ("what", "with", "seconds", "ratio")
    figures = [{key: None if value != value else value for key, value in zip(names, row, strict=False)} for row in rows]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
