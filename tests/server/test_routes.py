"""The API of a real server, without a runner: nothing that is queued here is begun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from servers import Server

from mlmeta.exchange.importing import import_attempts

API = "/ajax-api/mlmeta"
DIGITS = json.loads((Path(__file__).parent.parent.parent / "digits.json").read_text())
FOLDER = {"data": {"source": "folder", "path": "pictures"}}


def commands(name: str, **changes: Any) -> dict[str, Any]:
    return {**DIGITS, "model_name": name, **changes}


def attempt(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "training_commands": commands(name), **changes}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store_template, folder / "mlflow.db")
    options = ["--app-name", "mlmeta", "--workers", "1"]
    environment = {"MLMETA_WORKER": "0", "MLMETA_MAX_QUEUE": "20", "MLMETA_STATE_DIR": str(folder / "state")}
    server = Server(folder, f"sqlite:///{folder}/mlflow.db", options=options, environment=environment)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def history(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twenty-four imported attempts on two tasks; their run ids."""
    file = tmp_path_factory.mktemp("documents") / "attempts.json"
    documents = [
        {
            **attempt(f"past-{i:02}", accuracy=0.5 + 0.02 * i, status="Complete"),
            "training_losses": [2.0 - 0.05 * i, 1.0],
            "n_epoch": 2,
            "training_commands": commands(
                f"past-{i:02}",
                optimizer={"name": "SGD", "lr": 0.1 / (i + 1)},
                data={"source": "folder", "path": f"pictures/task-{i % 2}"},
            ),
            "task": {"name": f"task-{i % 2}", "label_names": ["a", "b"], "n_train": 100 + i % 2, "n_test": 20},
        }
        for i in range(24)
    ]  # fmt: skip
    file.write_text(json.dumps(documents))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    try:
        import_attempts([file])
    finally:
        mlflow.set_tracking_uri(before)
    runs = MlflowClient(server.uri).search_runs(["0"], "tags.`mlmeta.import_digest` != ''")
    return [run.info.run_id for run in sorted(runs, key=lambda run: run.info.run_name)]


def test_attempts_are_found_page_by_page(server: Server, history: list[str]) -> None:
    status, first = server.ask(f"{API}/attempts?filter=accuracy%20%3E%200.87&order_by=accuracy%20DESC&limit=3")
    assert (status, first["total"], first["next_offset"]) == (200, 5, 3)
    assert [row["model_name"] for row in first["attempts"]] == ["past-23", "past-22", "past-21"]
    assert first["attempts"][0]["run_id"] == history[23]
    assert first["attempts"][0]["optimizer.lr"] == pytest.approx(0.1 / 24)
    _, rest = server.ask(f"{API}/attempts?filter=accuracy%20%3E%200.87&order_by=accuracy%20DESC&limit=3&offset=3")
    assert ([row["model_name"] for row in rest["attempts"]], rest["next_offset"]) == (["past-20", "past-19"], None)


@pytest.mark.usefixtures("history")
def test_columns_are_those_that_are_asked_for(server: Server) -> None:
    _, page = server.ask(f"{API}/attempts?columns=model_name,accuracy&order_by=accuracy%20DESC&limit=1")
    assert page["attempts"] == [{"model_name": "past-23", "accuracy": 0.96}]


def test_the_server_reads_anew_when_told_to(server: Server, history: list[str]) -> None:
    wanted = f"{API}/attempts?filter=by_hand%20%3D%207"
    assert server.ask(wanted)[0] == 400
    MlflowClient(server.uri).log_metric(history[0], "by_hand", 7.0)
    status, answer = server.ask(f"{API}/attempts/read-anew", method="POST")
    assert (status, answer["n_attempts"] >= 24) == (200, True)
    assert [row["run_id"] for row in server.ask(wanted)[1]["attempts"]] == [history[0]]
    noted = "tags.mlflow.note.content"
    MlflowClient(server.uri).set_tag(history[1], "mlflow.note.content", "blurred")
    _, found = server.ask(f"{API}/attempts?filter={noted}%20%3D%20'blurred'&columns=run_id,{noted}")
    assert found["attempts"] == [{"run_id": history[1], noted: "blurred"}]


@pytest.mark.usefixtures("history")
@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("attempts?filter=accuracy%20%3E%3E%201", 400, "expected a number"),
        ("attempts?filter=acuracy%20%3E%201", 400, "accuracy"),
        ("attempts?limit=0", 422, "greater than or equal to 1"),
        ("attempts/" + "0" * 32, 404, "0" * 32),
        ("curves?run_id=nobody", 404, "nobody"),
        ("curves?run_id=" + "&run_id=".join("0" * 60), 422, "50"),
        ("similar?task=tsk-0", 404, "task-"),
        ("similar?task=/etc/passwd", 404, "no task"),
        ("importance?metric=acuracy", 422, "accuracy"),
        ("find_attempt?name=past-99", 404, "past-99"),
        ("find_attempt?name=x'%20or%20'1'='1", 404, "no attempt"),
        ("find_attempt", 422, "name"),
        ("jobs/" + "0" * 32 + "/log", 404, ""),
        ("jobs?offset=9223372036854775808", 422, "less than or equal"),
        ("jobs/" + "0" * 32 + "/log?offset=9223372036854775807", 422, "less than or equal"),
        ("tasks?metric=model_name", 422, "numbers only"),
        ("tasks?metric=started", 422, "numbers only"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(server: Server, path: str, status: int, words: str) -> None:
    came, answer = server.ask(f"{API}/{path}")
    assert came == status, answer
    assert words in json.dumps(answer["detail"])


def test_curves_leaderboard_and_tasks(server: Server, history: list[str]) -> None:
    _, answer = server.ask(f"{API}/curves?metric=train_loss&run_id={history[0]}&run_id={history[3]}")
    assert [(curve["model_name"], curve["steps"], curve["values"]) for curve in answer["curves"]] == [
        ("past-00", [1, 2], [2.0, 1.0]),
        ("past-03", [1, 2], [1.85, 1.0]),
    ]
    status, best = server.ask(f"{API}/leaderboard?task=task-0&limit=2")
    assert status == 200, best
    assert [row["model_name"] for row in best["attempts"]] == ["past-22", "past-20"]
    _, tasks = server.ask(f"{API}/tasks")
    assert [(task["task"], task["n_attempts"]) for task in tasks["tasks"]] == [("task-0", 12), ("task-1", 12)]
    assert tasks["distances"][0][0] == 0
    _, near = server.ask(f"{API}/similar?task=task-0")
    assert [task["task"] for task in near["tasks"]] == ["task-1"]


@pytest.mark.usefixtures("history")
def test_importance_names_what_was_varied(server: Server) -> None:
    status, answer = server.ask(f"{API}/importance")
    assert status == 200, answer
    assert answer["importance"][0]["param"] == "optimizer.lr"


def test_an_attempt_is_told_whole(server: Server, history: list[str]) -> None:
    status, answer = server.ask(f"{API}/attempts/{history[2]}")
    assert status == 200, answer
    assert answer["attempt"]["name"] == "past-02"
    assert answer["metrics"]["accuracy"] == pytest.approx(0.54)
    assert answer["job"] is None
    assert answer["ui"] == f"/#/experiments/0/runs/{history[2]}?workflowType=machine_learning"


def test_the_older_tools_verbs_create_find_update_delete(server: Server) -> None:
    _, before = server.ask(f"{API}/latest_attempt_index", method="POST")
    status, made = server.ask(f"{API}/create_attempt", attempt("verbs"))
    assert (status, made["status"], made["training_commands"]) == (201, "incomplete", commands("verbs"))
    assert server.ask(f"{API}/latest_attempt_index")[1]["latest_attempt_index"] == before["latest_attempt_index"] + 1
    assert server.ask(f"{API}/find_attempt?name=verbs") == (200, made)
    assert server.ask(f"{API}/create_attempt", attempt("verbs"))[0] == 409
    changed = attempt("verbs", testing_commands={"model_name": "verbs", "limit": 7})
    changed["training_commands"]["n_epoch"] = 3
    status, updated = server.ask(f"{API}/update_attempt", changed)
    assert (status, updated["training_commands"]["n_epoch"], updated["testing_commands"]["limit"]) == (200, 3, 7)
    assert updated["id"] == made["id"]
    # What is left out of the document is gone; what cannot be kept is refused.
    assert server.ask(f"{API}/update_attempt", attempt("verbs"))[1]["testing_commands"] is None
    long = attempt("verbs", testing_commands={"model_name": "verbs", "ids": [f"picture {i}" for i in range(900)]})
    for verb in ("update_attempt", "create_attempt"):
        status, answer = server.ask(f"{API}/{verb}", long)
        assert (status, answer["detail"].partition(":")[0]) == (422, "testing_commands")
    assert server.ask(f"{API}/delete_attempt?name=verbs", method="DELETE") == (200, {"deleted": [made["id"]]})
    assert server.ask(f"{API}/find_attempt?name=verbs")[0] == 404
    assert server.ask(f"{API}/delete_attempt?name=verbs", method="POST")[0] == 404


def test_commands_longer_than_a_tag_are_kept(server: Server) -> None:
    last = {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}
    layers = [{"name": "Flatten"}, *[{"name": "ReLU"}] * 800, last]
    long = attempt("long")
    long["training_commands"]["model"] = {"layers": layers}
    assert server.ask(f"{API}/create_attempt", long)[0] == 201
    assert server.ask(f"{API}/find_attempt?name=long")[1]["training_commands"]["model"]["layers"] == layers


def test_a_training_waits_in_its_run_and_can_be_cancelled(server: Server) -> None:
    status, job = server.ask(f"{API}/train", commands("waits"))
    assert (status, job["state"], job["name"]) == (202, "queued", "waits")
    run = MlflowClient(server.uri).get_run(job["run_id"])
    assert (run.info.status, run.data.tags["mlmeta.status"], run.info.run_name) == ("SCHEDULED", "incomplete", "waits")
    assert json.loads(run.data.tags["mlmeta.commands"]) == commands("waits")
    assert server.ask(f"{API}/find_attempt?name=waits")[1]["status"] == "incomplete"
    status, test = server.ask(f"{API}/test", {"model_name": "waits"})
    assert (status, test["kind"], test["position"]) == (202, "test", job["position"] + 1)
    assert server.ask(f"{API}/update_attempt", attempt("waits"))[0] == 409
    for one in (job, test):
        status, cancelled = server.ask(f"{API}/attempts/{one['run_id']}/cancel", method="POST")
        assert (status, cancelled["state"]) == (200, "cancelled")
    run = MlflowClient(server.uri).get_run(job["run_id"])
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("KILLED", "Interrupted")
    assert server.ask(f"{API}/attempts/{job['run_id']}/cancel", method="POST")[0] == 409
    tags = MlflowClient(server.uri).get_run(job["run_id"]).data.tags
    assert "mlmeta.queued" not in tags


def test_a_cancelled_attempt_does_not_hide_the_trained_one_of_its_name(server: Server) -> None:
    trained, again = (server.ask(f"{API}/train", commands("often"))[1]["run_id"] for _ in range(2))
    MlflowClient(server.uri).set_tag(trained, "mlmeta.weights_sha256", "0" * 64)
    server.ask(f"{API}/attempts/{again}/cancel", method="POST")
    status, test = server.ask(f"{API}/test", {"model_name": "often"})
    assert status == 202
    assert MlflowClient(server.uri).get_run(test["run_id"]).data.tags["mlmeta.attempt"] == trained
    for run_id in (test["run_id"], trained):
        server.ask(f"{API}/attempts/{run_id}/cancel", method="POST")


def test_an_experiment_is_the_one_that_is_asked_for(server: Server) -> None:
    client = MlflowClient(server.uri)
    # Its name is a number, and no id.
    experiment_id = client.create_experiment("2026")
    _, described = server.ask(f"{API}/create_attempt", attempt("wanders"))
    status, job = server.ask(f"{API}/train?experiment=2026", commands("wanders"))
    assert (status, job["run_id"] == described["id"]) == (202, False)
    run = client.get_run(job["run_id"])
    assert (run.info.experiment_id, run.data.tags["mlmeta.page"]) == (experiment_id, "/mlmeta/")
    assert server.ask(f"{API}/train?experiment=%D9%A1", commands("wanders"))[0] == 404
    server.ask(f"{API}/delete_attempt?name=wanders", method="POST")


def test_a_described_attempt_is_the_one_that_is_trained(server: Server) -> None:
    _, made = server.ask(f"{API}/create_attempt", attempt("described"))
    assert server.ask(f"{API}/test", {"model_name": "described"})[0] == 409
    _, job = server.ask(f"{API}/train", commands("described", n_epoch=2))
    assert job["run_id"] == made["id"]
    assert MlflowClient(server.uri).get_run(made["id"]).data.tags["mlmeta.page"] == "/mlmeta/"
    assert server.ask(f"{API}/find_attempt?name=described")[1]["training_commands"]["n_epoch"] == 2
    assert server.ask(f"{API}/train", commands("described"))[1]["run_id"] != made["id"]
    server.ask(f"{API}/delete_attempt?name=described", method="POST")


def test_faulty_commands_have_the_faults_of_the_command_line(server: Server) -> None:
    status, answer = server.ask(f"{API}/train", {**commands("faulty"), "optimizer": {"name": "SDG"}, "n_epoch": 0})
    assert status == 422
    assert {fault["path"]: fault["nearest"] for fault in answer["faults"]} == {"n_epoch": "", "optimizer.name": "SGD"}
    assert "Did you mean 'SGD'?" in answer["detail"]
    assert server.ask(f"{API}/find_attempt?name=faulty")[0] == 404


def test_pictures_lie_under_the_data_roots_or_are_samples(server: Server) -> None:
    status, answer = server.ask(f"{API}/train", commands("outside", **FOLDER))
    assert (status, answer["faults"][0]["path"]) == (422, "data.source")
    status, _ = server.ask(
        f"{API}/create_attempt", {"name": "outside", "training_commands": commands("outside", **FOLDER)}
    )
    assert status == 422


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a": NaN}', b"\xff", b'{"a": 1, "a": 2}', b'"text"'])
def test_a_body_that_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    for verb in ("train", "test", "create_attempt", "update_attempt", "recommend"):
        status, answer = server.ask(f"{API}/{verb}", body, method="POST")
        assert status in (400, 422), verb
        assert answer["detail"]


def test_a_full_queue_says_so_and_leaves_no_run(server: Server) -> None:
    runs = []
    while True:
        status, answer = server.ask(f"{API}/train", commands("many"))
        if status != 202:
            break
        runs.append(answer["run_id"])
    assert (status, len(runs)) == (429, 20)
    assert "20 jobs" in answer["detail"]
    _, found = server.ask(f"{API}/jobs?state=queued")
    assert [job["run_id"] for job in found["jobs"]] == runs
    assert found["counts"]["queued"] == 20
    deleted = server.ask(f"{API}/delete_attempt?name=many", method="POST")[1]["deleted"]
    assert sorted(deleted) == sorted(runs)


@pytest.mark.usefixtures("history")
def test_recommendations_are_commands_that_can_be_trained(server: Server) -> None:
    status, answer = server.ask(f"{API}/recommend", {"commands": commands("next"), "n": 2})
    assert status == 200, answer
    first, second = answer["recommendations"]
    assert first["commands"] != second["commands"]
    assert 0 <= first["score_mean"] <= 1
    assert first["reason"]
    assert server.ask(f"{API}/attempts", first["commands"])[0] == 202
    status, answer = server.ask(f"{API}/recommend", {"commands": commands("next"), "n": 0})
    assert (status, "from 1 to 20" in answer["detail"]) == (422, True)
    status, answer = server.ask(f"{API}/recommend", {"commands": {**commands("next"), "n_epochs": 3}})
    assert (status, answer["faults"][0]["nearest"]) == (422, "n_epoch")


def test_the_api_describes_itself(server: Server) -> None:
    status, document = server.ask(f"{API}/openapi.json")
    assert status == 200
    paths = {path.removeprefix(f"{API}/") for path in document["paths"]}
    assert paths >= {"train", "test", "attempts", "attempts/{run_id}/cancel", "curves", "jobs", "recommend"}
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert all(one["description"] and "422" in one["responses"] for one in operations)
    assert len({one["operationId"] for one in operations}) == len(operations)
    body = document["paths"][f"{API}/create_attempt"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    # As a link on the page, which lies beside the document.
    assert server.ask(f"{API}/{body['externalDocs']['url']}")[1]["properties"]["training_commands"]
    for name in ("train", "test", "attempt"):
        assert server.ask(f"{API}/schema/{name}")[1]["properties"]
    status, page = server.ask(f"{API}/docs")
    assert status == 200
    assert "POST /ajax-api/mlmeta/train" in page
    assert '<a href="schema/train">its JSON Schema</a>' in page
