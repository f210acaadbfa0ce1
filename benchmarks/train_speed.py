"""How long an epoch takes, beside a plain program and the bare loop; a table a size, one JSON line.

    python benchmarks/train_speed.py [--quick] [--repeats 5] [--epochs 4] [--sizes 500,64,32]

Three programs train one network on the same pictures, drawn dogs in JPEG files, in turn in one process:

    mlmeta      `train_attempt` with its recorder on a SQLite MLflow store; the picture cache is empty each time
    plain       ImageFolder and DataLoader with 2 workers, the epoch's loss logged to the same store
    in memory   the plain loop over float tensors that are there already, nothing logged

500×500 has batches of 4 and the network of examples/default.json; 64×64 batches of 32, 32×32 of 64, both the network
of dogs.json. A ratio is the median over the repeats, each of which compares its own three runs; the programs' order
turns from repeat to repeat. Where cores are shared with others, ``--threads 1`` and processor seconds are steadier.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
N_PER_LABEL = {500: 4, 64: 60, 32: 60}
BATCH = {500: 4, 64: 32, 32: 64}
NETWORK = {500: "examples/default.json", 64: "dogs.json", 32: "dogs.json"}
# What DESIGN asks for: (mlmeta / in memory at most, plain / mlmeta at least).
TARGETS = {500: (0.75, 1.5), 64: (1.0, 5.4)}
OPTIMIZER = {"lr": 0.001, "momentum": 0.9}
HALF = [0.5, 0.5, 0.5]


@dataclass
class Run:
    """One program's times, in seconds, and its memory.

    Attributes:
        stamps: When the first epoch was about to begin, and when each epoch ended.
        cpu: The processor seconds at each stamp, those of finished workers too.
        started: When the program began.
        peak_mb: The most memory of this process beyond what it had at the start, workers not counted; 0 where the
            system does not say.
    """

    started: float = field(default_factory=time.perf_counter)
    stamps: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def stamp(self) -> None:
        """Take the time."""
        self.stamps.append(time.perf_counter())
        times = os.times()
        self.cpu.append(times.user + times.system + times.children_user + times.children_system)

    @property
    def figures(self) -> dict[str, float]:
        """Start, first epoch, medians of the later ones, total, memory."""
        epochs, cpu = ([b - a for a, b in itertools.pairwise(values)] for values in (self.stamps, self.cpu))
        return {
            "start_s": self.stamps[0] - self.started,
            "first_epoch_s": epochs[0],
            "later_epoch_s": statistics.median(epochs[1:]),
            "later_cpu_s": statistics.median(cpu[1:]),
            "total_s": self.stamps[-1] - self.started,
            "peak_mb": self.peak_mb,
        }


def measure(program: Callable[[Run], None]) -> Run:
    """Run a program from a clean start of memory's high-water mark."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    run, before = Run(), read_memory("VmRSS")
    program(run)
    run.peak_mb = read_memory("VmHWM") - before
    return run


def read_memory(key: str) -> float:
    """Return a figure of this process's memory in MB, as Linux knows it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)


def write_pictures(folder: Path, size: int, n_per_label: int) -> None:
    """Draw the dogs and save them as ``<folder>/<breed>/<number>.jpg``."""
    from mlmeta.data.samples import list_samples

    for sample in list_samples("dogs", size=size, n_per_label=n_per_label):
        file = folder / f"{sample.id.removeprefix('dogs/')}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        sample.draw().save(file, quality=90)


def make_commands(folder: Path, size: int, n_epoch: int) -> Any:
    """Return train commands for the pictures, all of which are trained on."""
    from mlmeta.commands.parsing import load_train_commands, parse_train_commands

    layers = load_train_commands(ROOT / NETWORK[size]).model["layers"]
    return parse_train_commands(
        {
            "model_name": f"speed_{size}",
            "data": {"source": "folder", "path": str(folder), "test_fraction": 0.0},
            "image_ops": [{"resize": {"size": [size, size]}}, {"convert": {"mode": "RGB"}}],
            "transform": {"ToTensor": True, "Normalize": {"mean": HALF, "std": HALF}},
            "model": {"layers": layers},
            "criterion": {"name": "CrossEntropyLoss"},
            "optimizer": {"name": "SGD", **OPTIMIZER},
            "batch_size": BATCH[size],
            "n_epoch": n_epoch,
            "validation": 0.0,
        }
    )


def run_mlmeta(run: Run, commands: Any) -> None:
    """Prepare and train as ``mlmeta train`` does."""
    from mlmeta.data.picture_cache import PictureCache, pictures_folder
    from mlmeta.status import Status
    from mlmeta.tracking import runs
    from mlmeta.training.loop import train_attempt
    from mlmeta.training.preparation import prepare_training

    PictureCache(pictures_folder()).clear()

    class Stamps:
        def epoch(self, _: int, metrics: Any) -> None:
            run.stamp()
            run.losses.append(metrics["train_loss"])

    run.started = time.perf_counter()
    prepared = prepare_training(commands, base_dir=ROOT)
    with runs.record_attempt(commands, base_dir=ROOT) as recorder:
        recorder.set_status(Status.TRAINING)
        run.stamp()
        train_attempt(prepared, recorder, progress=Stamps())
        recorder.set_status(Status.TRAINED)


def make_network(commands: Any, n_labels: int, size: int) -> tuple[Any, Any]:
    """Return the network of the commands with its optimizer."""
    import torch

    from mlmeta.spec_builder import build_model

    torch.manual_seed(0)
    model = build_model(commands.model, n_labels=n_labels, input_shape=(3, size, size))
    return model, torch.optim.SGD(model.parameters(), **OPTIMIZER)


def train_plainly(model: Any, optimizer: Any, batches: Iterator[Any]) -> float:
    """Train one epoch as any tutorial does; return the mean loss over batches."""
    from torch import nn

    model.train()
    criterion, losses = nn.CrossEntropyLoss(), []
    for pictures, labels in batches:
        optimizer.zero_grad()
        loss = criterion(model(pictures), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.fmean(losses)


def open_folder(folder: Path, size: int) -> Any:
    """Return the pictures as torchvision reads them."""
    from torchvision import datasets, transforms

    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(HALF, HALF)]
    return datasets.ImageFolder(folder, transforms.Compose(steps))


def run_plain(run: Run, commands: Any, folder: Path, size: int) -> None:
    """Train as a plain PyTorch program with MLflow does."""
    import mlflow
    from torch.utils.data import DataLoader

    pictures = open_folder(folder, size)
    loader = DataLoader(pictures, batch_size=BATCH[size], shuffle=True, num_workers=2)
    model, optimizer = make_network(commands, len(pictures.classes), size)
    with mlflow.start_run(run_name="plain"):
        run.stamp()
        for epoch in range(1, commands.n_epoch + 1):
            run.losses.append(train_plainly(model, optimizer, iter(loader)))
            mlflow.log_metrics({"train_loss": run.losses[-1]}, step=epoch)
            run.stamp()


def run_in_memory(run: Run, commands: Any, folder: Path, size: int) -> None:
    """Train over float tensors that were made before the first epoch."""
    import torch

    pictures = open_folder(folder, size)
    x = torch.empty(len(pictures), 3, size, size)
    y = torch.tensor(pictures.targets)
    for index in range(len(pictures)):
        x[index] = pictures[index][0]
    model, optimizer = make_network(commands, len(pictures.classes), size)
    run.stamp()
    for _ in range(commands.n_epoch):
        order = torch.randperm(len(x)).split(BATCH[size])
        run.losses.append(train_plainly(model, optimizer, ((x[chunk], y[chunk]) for chunk in order)))
        run.stamp()


def measure_size(size: int, *, folder: Path, n_per_label: int, epochs: int, repeats: int) -> dict[str, Any]:
    """Return the figures of all three programs at one size of picture, medians over the repeats, and the ratios."""
    pictures = folder / str(size)
    write_pictures(pictures, size, n_per_label)
    commands = make_commands(pictures, size, epochs)
    programs: dict[str, Callable[[Run], None]] = {
        "mlmeta": lambda run: run_mlmeta(run, commands),
        "plain": lambda run: run_plain(run, commands, pictures, size),
        "in memory": lambda run: run_in_memory(run, commands, pictures, size),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    names = list(programs)
    for repeat in range(repeats):
        for name in names[repeat % 3 :] + names[: repeat % 3]:
            run = measure(programs[name])
            assert run.losses[-1] < 3, f"{name} does not train: {run.losses}"
            runs[name].append(run.figures)
    n = 9 * n_per_label
    result: dict[str, Any] = {"size": size, "batch": BATCH[size], "n_pictures": n, "programs": {}}
    for name, figures in runs.items():
        medians = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        result["programs"][name] = medians | {"pictures_per_s": n / medians["later_epoch_s"]}
    later = {name: [one["later_epoch_s"] for one in figures] for name, figures in runs.items()}
    result["mlmeta_to_in_memory"] = median_ratio(later["mlmeta"], later["in memory"])
    result["plain_to_mlmeta"] = median_ratio(later["plain"], later["mlmeta"])
    cpu = {name: [one["later_cpu_s"] for one in figures] for name, figures in runs.items()}
    result["cpu_mlmeta_to_in_memory"] = median_ratio(cpu["mlmeta"], cpu["in memory"])
    result["cpu_plain_to_mlmeta"] = median_ratio(cpu["plain"], cpu["mlmeta"])
    totals = {name: [one["total_s"] for one in figures] for name, figures in runs.items()}
    result["total_plain_to_mlmeta"] = median_ratio(totals["plain"], totals["mlmeta"])
    return result


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios, pair by pair."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def print_table(result: dict[str, Any]) -> None:
    """Print one size's figures."""
    size, n, batch = result["size"], result["n_pictures"], result["batch"]
    print(f"{size}×{size}, batch {batch}, {n} pictures")
    columns = ("start_s", "first_epoch_s", "later_epoch_s", "later_cpu_s", "pictures_per_s", "total_s", "peak_mb")
    print(f"  {'program':10}" + "".join(f"{column:>16}" for column in columns))
    for name, figures in result["programs"].items():
        print(f"  {name:10}" + "".join(f"{figures[column]:16.4g}" for column in columns))
    most, least = TARGETS.get(size, (None, None))
    reached = f"(to reach: ≤ {most}, ≥ {least})" if most else ""
    for what, key in (("seconds", ""), ("processor seconds", "cpu_")):
        own, other = result[f"{key}mlmeta_to_in_memory"], result[f"{key}plain_to_mlmeta"]
        print(f"  {what}: mlmeta / in memory {own:.2f}, plain / mlmeta {other:.2f} {reached}")
    print(f"  with all that comes before, plain / mlmeta {result['total_plain_to_mlmeta']:.2f}\n", flush=True)


def main() -> None:
    """Measure all sizes in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pictures, one repeat: does it run?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--sizes", default="500,64,32")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own choice")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        for variable in ("CACHE", "STATE"):
            os.environ[f"MLMETA_{variable}_DIR"] = str(folder / variable.lower())
        os.chdir(folder)
        import torch

        from mlmeta.tracking.store import open_client

        open_client()
        if given.threads:
            torch.set_num_threads(given.threads)
        results = []
        for size in map(int, given.sizes.split(",")):
            n_per_label = 2 if given.quick else N_PER_LABEL[size]
            epochs, repeats = (2, 1) if given.quick else (max(2, given.epochs), given.repeats)
            results.append(measure_size(size, folder=folder, n_per_label=n_per_label, epochs=epochs, repeats=repeats))
            print_table(results[-1])
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "sizes": results}))


if __name__ == "__main__":
    main()
