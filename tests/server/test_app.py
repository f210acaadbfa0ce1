"""MLflow's own answers with and without the plugin; prefix, worker processes, settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import Server

API = "/ajax-api/mlmeta"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[tuple[Server, Server]]:
    """One without and one with the plugin, over copies of one store with a run in it."""
    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    shutil.copy(store_template, template)
    client = MlflowClient(f"sqlite:///{template}")
    run = client.create_run("0", run_name="a run", tags={"k": "v"})
    client.log_metric(run.info.run_id, "m", 0.5, step=3)
    made = []
    for name, options in (("plain", ["--workers", "1"]), ("plugin", ["--workers", "2", "--app-name", "mlmeta"])):
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(template, folder / "mlflow.db")
        environment = {"MLMETA_WORKER": "0", "MLMETA_STATE_DIR": str(folder / "state")}
        made.append(Server(folder, f"sqlite:///{folder}/mlflow.db", options=options, environment=environment))
    for server in made:
        server.start()
    yield made[0], made[1]
    for server in made:
        server.kill()


def test_mlflow_answers_as_without_the_plugin(servers: tuple[Server, Server]) -> None:
    plain, plugin = servers
    run_id = MlflowClient(plain.uri).search_runs(["0"])[0].info.run_id
    asked = [
        ("/health", None, "GET"),
        ("/version", None, "GET"),
        ("/", None, "GET"),
        ("/static-files/nothing.js", None, "GET"),
        ("/api/2.0/mlflow/experiments/search", {"max_results": 5}, "POST"),
        ("/ajax-api/2.0/mlflow/experiments/search", {"max_results": 5}, "POST"),
        ("/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]}, "POST"),
        (f"/api/2.0/mlflow/runs/get?run_id={run_id}", None, "GET"),
        (f"/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=m", None, "GET"),
        ("/api/2.0/mlflow/runs/get?run_id=nothing", None, "GET"),
        ("/api/2.0/mlflow/runs/log-batch", b"no json", "POST"),
        ("/api/2.0/mlflow-artifacts/artifacts", None, "GET"),
        ("/ajax-api/3.0/jobs/nothing", None, "GET"),
        ("/ajax-api/mlmetaphor", None, "GET"),
        ("/mlmetaphor", None, "GET"),
        ("/graphql", {"query": "{"}, "POST"),
    ]
    for path, body, method in asked:
        here, there = (server.ask(path, body, method=method) for server in (plain, plugin))
        assert _without_ids(here) == _without_ids(there), path
    assert plain.ask(f"{API}/attempts")[0] == 404
    assert plugin.ask(f"{API}/attempts") == (200, {"attempts": [], "total": 0, "offset": 0, "next_offset": None})


def _without_ids(answer: object) -> str:
    """Leave out what differs from request to request."""
    return re.sub(r"(nonce|csrf|token)[-=\"': ]+[\w-]+", "", str(answer))


def test_the_static_prefix_is_honoured(tmp_path: Path, store_template: Path) -> None:
    shutil.copy(store_template, tmp_path / "mlflow.db")
    server = Server(
        tmp_path, f"sqlite:///{tmp_path}/mlflow.db", options=["--app-name", "mlmeta", "--workers", "1"],
        environment={"MLMETA_WORKER": "0", "MLMETA_STATE_DIR": str(tmp_path / "state")}, prefix="/tracking",
    )  # fmt: skip
    server.start()
    try:
        assert server.ask(f"{API}/attempts")[1]["total"] == 0
        assert f"/tracking{API}/train" in server.ask(f"{API}/openapi.json")[1]["paths"]
        server.uri = server.uri.removesuffix("/tracking")
        assert server.ask(f"{API}/attempts")[0] == 404
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("MLMETA_AT_ONCE", "many", "MLMETA_AT_ONCE"), ("MLMETA_DATA_ROOT", "/no/such/folder", "/no/such/folder")],
)
def test_a_faulty_setting_ends_the_server_with_one_sentence(
    tmp_path: Path, variable: str, value: str, words: str
) -> None:
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "mlmeta", "--port", "0"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    environment = {**os.environ, variable: value, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
