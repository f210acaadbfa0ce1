"""Makes ``home.tar.xz`` and ``answers.json`` beside this file, by the commands of one commit: see README.md."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

COMMIT = "1049834"
HERE = Path(__file__).resolve().parent
HOME = Path("/tmp/before_the_move")
ADDRESS = "http://127.0.0.1:47612"
STORE = f"sqlite:///{HOME}/mlflow.db"
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": str(HOME),
    "LOGNAME": "somebody",
    "PYTHONPATH": f"{HOME}/code",
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLMETA_STATE_DIR": f"{HOME}/state",
    "MLMETA_CACHE_DIR": f"{HOME}/cache",
    "MLMETA_QUEUE_DIR": f"{HOME}/queue",
    "MLMETA_FLUSH_S": "0",
}
SMALL = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]
# Few weights, but so much to compute that an attempt can be stopped in its middle.
SLOW = [
    {"name": "Conv2d", "in_channels": 3, "out_channels": 6, "kernel_size": 3, "padding": 60},
    {"name": "BatchNorm2d", "num_features": 6},
    {"name": "ReLU"},
    {"name": "Conv2d", "in_channels": 6, "out_channels": 6, "kernel_size": 3},
    {"name": "AdaptiveAvgPool2d", "output_size": 4},
    *SMALL,
]
COMMANDS = {
    "label_names": ["red", "green", "blue"],
    "data": {"source": "folder", "path": "colours"},
    "image_ops": [{"resize": {"size": [6, 6]}}],
    "transform": {"ToTensor": True},
    "model": {"layers": SMALL},
    "optimizer": {"name": "Adam", "lr": 0.02},
    "batch_size": 8,
    "n_epoch": 3,
    "validation": 0.2,
}
LONG = {
    "model": {"layers": SLOW},
    "batch_size": 2,
    "n_epoch": 48,
    # Its state holds a Counter, so that a checkpoint names a class.
    "scheduler": {"name": "MultiStepLR", "milestones": [8, 24, 40]},
}
FILTERS = ["", "accuracy > 0.2 and params.n_epoch = '3'", "status = 'Interrupted'", "params.optimizer.lr > 1"]
QUESTIONS = """
import json, sys, mlmeta
rows = lambda table: json.loads(table.to_json(orient="records", date_format="iso"))
attempts = mlmeta.load_attempts()
answers = {"load_attempts": rows(attempts), "search_attempts": {}, "kinds": attempts.attrs["kinds"]}
for text in json.loads(sys.argv[1]):
    answers["search_attempts"][text] = rows(mlmeta.search_attempts(text))
answers["load_curves"] = rows(mlmeta.load_curves(list(attempts["run_id"])))
print(json.dumps(answers, indent=1, sort_keys=True))
"""


def take_code() -> None:
    (HOME / "code").mkdir(parents=True)
    command = ["git", "-C", str(HERE.parents[2]), "archive", COMMIT, "mlmeta"]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", f"{HOME}/code"], input=archive, check=True)


def make_pictures() -> None:
    rng = np.random.default_rng(0)
    for channel, label in enumerate(COMMANDS["label_names"]):
        (HOME / "colours" / label).mkdir(parents=True)
        for index in range(12):
            pixels = rng.normal(90, 30, (8, 8, 3))
            pixels[:, :, channel] += 60
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(HOME / "colours" / label / f"{index:02}.png")


def start(*arguments: str, uri: str = ADDRESS) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlmeta", *arguments]
    environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": uri}
    return subprocess.Popen(command, cwd=HOME, env=environment, start_new_session=True, text=True)


def start_server() -> subprocess.Popen[str]:
    options = ["--workers", "1", "--port", ADDRESS.rpartition(":")[2], "--backend-store-uri", STORE]
    options += ["--artifacts-destination", f"{HOME}/artifacts"]
    server = start("server", "--no-worker", "--data-root", str(HOME), "--", *options, uri="")
    while True:
        try:
            urllib.request.urlopen(f"{ADDRESS}/health", timeout=5).close()
            return server
        except OSError:
            assert server.poll() is None
            time.sleep(0.2)


def write_commands(name: str, **changes: object) -> str:
    file = HOME / f"{name}.json"
    file.write_text(json.dumps({"model_name": name, **COMMANDS, **changes}, indent=1))
    return file.name


def post(path: str, document: object) -> None:
    content = json.dumps(document).encode()
    request = urllib.request.Request(f"{ADDRESS}/ajax-api/mlmeta/{path}", content, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()


def wait_for_epochs(name: str, wanted: int) -> None:
    """Wait until the store has so many epochs of an attempt."""
    sql = "SELECT count(*) FROM metrics JOIN runs USING (run_uuid) WHERE key = 'train_loss' AND name = ?"
    while True:
        connection = sqlite3.connect(f"file:{HOME}/mlflow.db?mode=ro", uri=True)
        (found,) = connection.execute(sql, (name,)).fetchone()
        connection.close()
        if found >= wanted:
            return
        time.sleep(0.05)


def make_home() -> None:
    take_code()
    make_pictures()
    server = start_server()
    for name, lr in (("good", 0.02), ("better", 0.1)):
        assert start("train", write_commands(name, optimizer={"name": "Adam", "lr": lr})).wait() == 0
    assert start("train", write_commands("wild", optimizer={"name": "SGD", "lr": 1e38})).wait() != 0
    stopped = start("train", write_commands("stopped", **LONG))
    wait_for_epochs("stopped", 6)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait() != 0
    for name in ("waiting", "waiting too"):
        post("attempts", {"model_name": name, **COMMANDS})
    post("test", {"model_name": "good", "limit": 5})
    cut_off = start("train", write_commands("cut off", **LONG))
    wait_for_epochs("cut off", 6)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    assert cut_off.wait() == 0


def ask_questions() -> str:
    """Return the answers of the store as it is left, which leaves a history cache too."""
    connection = sqlite3.connect(HOME / "mlflow.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("VACUUM")
    connection.close()
    command = [sys.executable, "-c", QUESTIONS, json.dumps(FILTERS)]
    environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": STORE}
    return subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    make_home()
    (HERE / "answers.json").write_text(ask_questions())
    with tarfile.open(HERE / "home.tar.xz", "w:xz", preset=9) as archive:
        for name in ("mlflow.db", "artifacts", "state", "cache", "queue", "colours"):
            archive.add(HOME / name, name, filter=make_nobodys)


def make_nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


main()
