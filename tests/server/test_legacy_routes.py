"""The older tool's own way through an attempt's life, by HTTP, with a server that trains."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from servers import Server

API = "/ajax-api/mlmeta"
DIGITS = json.loads((Path(__file__).parent.parent.parent / "digits.json").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store_template, folder / "mlflow.db")
    environment = {"MLMETA_STATE_DIR": str(folder / "state"), "MLMETA_AT_ONCE": "2"}
    options = ["--app-name", "mlmeta", "--workers", "2"]
    server = Server(folder, f"sqlite:///{folder}/mlflow.db", options=options, environment=environment)
    server.start()
    yield server
    server.stop()


def commands(name: str, **changes: Any) -> dict[str, Any]:
    return {**DIGITS, "model_name": name, "n_epoch": 2, **changes}


def wait_for(server: Server, run_id: str) -> dict[str, Any]:
    """Return the job of a run when it has ended."""
    for _ in range(3000):
        status, answer = server.ask(f"{API}/attempts/{run_id}")
        assert status == 200, answer
        if answer["job"]["state"] in ("done", "failed", "cancelled"):
            job: dict[str, Any] = answer["job"]
            return job
        time.sleep(0.2)
    pytest.fail("the job has no end")


def test_create_find_update_train_find_test_find_delete_find(server: Server) -> None:
    find = f"{API}/find_attempt?name=older"
    assert server.ask(f"{API}/create_attempt", {"name": "older", "training_commands": commands("older")})[0] == 201
    assert server.ask(find)[1]["status"] == "incomplete"
    changed = {"name": "older", "training_commands": commands("older", batch_size=16)}
    assert server.ask(f"{API}/update_attempt", changed)[0] == 200
    status, job = server.ask(f"{API}/train", server.ask(find)[1]["training_commands"])
    assert status == 202
    assert wait_for(server, job["run_id"])["state"] == "done"
    trained = server.ask(find)[1]
    assert (trained["id"], trained["status"], trained["n_epoch"]) == (job["run_id"], "Trained", 2)
    assert trained["accuracy"] is None
    status, test = server.ask(f"{API}/test", {"model_name": "older", "limit": 50})
    assert status == 202
    assert wait_for(server, test["run_id"])["state"] == "done"
    tested = server.ask(find)[1]
    assert (tested["status"], tested["limit"]) == ("Complete", 50)
    assert tested["accuracy"] > 0.3
    assert MlflowClient(server.uri).get_run(job["run_id"]).info.status == "FINISHED"
    assert server.ask(f"{API}/delete_attempt?name=older", method="POST")[0] == 200
    assert server.ask(find)[0] == 404


def test_attempts_posted_at_once_all_end_well_and_the_queue_goes_on_after_a_restart(server: Server) -> None:
    runs = [server.ask(f"{API}/attempts", commands(f"many-{i}", n_epoch=1))[1]["run_id"] for i in range(6)]
    wait_for(server, runs[0])
    server.stop()
    server.start()
    jobs = [wait_for(server, run_id) for run_id in runs]
    assert [job["state"] for job in jobs] == ["done"] * 6, [job["error"] for job in jobs]
    for run_id in runs:
        run = MlflowClient(server.uri).get_run(run_id)
        assert (run.info.status, run.data.tags["mlmeta.status"]) == ("FINISHED", "Complete")
        assert f"(/mlmeta/attempts/{run_id})" in run.data.tags["mlflow.note.content"]
    log = server.ask(f"{API}/jobs/{runs[-1]}/log")[1]["text"]
    assert "epoch 1/1" in log
