"""How long the command line takes to answer where nothing is trained; one table, one JSON line.

    python benchmarks/cli_start.py [--runs 9]

CPU seconds (user + system) and wall seconds of whole processes, medians, beside an empty Python program in turn.
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

LIMITS_S = {"python -c pass": None, "mlmeta --help": 0.3, "mlmeta train FAULTY": 0.5, "mlmeta schema": 0.5}


def time_process(command: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of one process."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    wall, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, wall


def main() -> None:
    """Time each command in turn, several times over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        faulty = Path(folder) / "faulty.json"
        faulty.write_text('{"model_name": "x", "model": {"layers": [{"name": "Conv2D"}]}}')
        module = [sys.executable, "-m", "mlmeta"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "mlmeta --help": [*module, "--help"],
            "mlmeta train FAULTY": [*module, "train", str(faulty)],
            "mlmeta schema": [*module, "schema"],
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for run in range(runs + 1):
            for name, command in commands.items():
                measured = time_process(command)
                if run:
                    times[name].append(measured)
    print(f"{'command':22} {'cpu s':>7} {'wall s':>7} {'limit':>6}")
    medians = {}
    for name, measured in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*measured, strict=True))
        medians[name] = {"cpu_s": round(cpu, 3), "wall_s": round(wall, 3), "limit_cpu_s": LIMITS_S[name]}
        print(f"{name:22} {cpu:7.3f} {wall:7.3f} {LIMITS_S[name] or '':>6}")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
