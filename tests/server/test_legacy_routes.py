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

from mlmeta.exchange.documents import parse_exchanged
from mlmeta.tracking.attempts import make_document

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


@pytest.mark.parametrize("told", [{}, {"training_commands": {}, "n_epoch": 3, "remark": {"by": "ada"}}])
def test_an_attempt_without_commands_comes_back_unchanged(server: Server, tmp_path: Path, told: dict[str, Any]) -> None:
    name = f"bar-{len(told)}"
    document = {"name": name, **told}
    status, created = server.ask(f"{API}/create_attempt", document)
    assert status == 201
    assert created.items() >= document.items()
    assert (created["status"], created["training_commands"], created["training_losses"]) == ("incomplete", {}, [])
    found = server.ask(f"{API}/find_attempt?name={name}")[1]
    assert found == created == make_document(created["id"], client=MlflowClient(server.uri))
    assert server.ask(f"{API}/update_attempt", found) == (200, found)
    changed = server.ask(f"{API}/update_attempt", {**found, "n_epoch": 7})[1]
    assert changed == {**found, "n_epoch": 7}
    parsed = parse_exchanged(changed)
    assert (parsed.document, parsed.commands, parsed.facts.n_epoch) == (changed, None, 7)


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"name": "x", "training_commands": {"model_name": "x", "batch_size": 0}}, "training_commands.batch_size"),
        ({"name": "x", "testing_commands": {"limit": 3}}, "testing_commands.run_id"),
        ({"name": "x", "training_comands": {"model_name": "x"}}, "training_comands: is no key"),
        ({"name": "../x"}, "name: must be a safe file name"),
        ({"training_commands": {}}, "name: is required and missing"),
    ],
)
def test_faults_of_what_is_there_are_reported(server: Server, document: dict[str, Any], fault: str) -> None:
    status, answer = server.ask(f"{API}/create_attempt", document)
    assert status == 422
    assert fault in json.dumps(answer)


def test_an_attempt_without_commands_may_get_them_and_be_trained(server: Server) -> None:
    server.ask(f"{API}/create_attempt", {"name": "later"})
    assert server.ask(f"{API}/test", {"model_name": "later"})[0] == 409
    document = {"name": "later", "training_commands": commands("later", n_epoch=1)}
    found = server.ask(f"{API}/update_attempt", document)[1]
    assert found["training_commands"] == document["training_commands"]
    job = server.ask(f"{API}/train", found)[1]
    assert job["run_id"] == found["id"]
    assert wait_for(server, job["run_id"])["state"] == "done"
    trained = server.ask(f"{API}/find_attempt?name=later")[1]
    assert (trained["status"], trained["n_epoch"]) == ("Trained", 1)
    assert trained["ended"] > trained["started"]
    assert trained == make_document(found["id"], client=MlflowClient(server.uri))


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
