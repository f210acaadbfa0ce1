"""With MLflow's basic-auth app underneath: nothing of ours without a login, and permissions are MLflow's."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Server

pytest.importorskip("flask_wtf", reason="MLflow's basic-auth app needs Flask-WTF")
API = "/ajax-api/mlmeta"
DIGITS = json.loads((Path(__file__).parent.parent.parent / "digits.json").read_text())
PASSWORD = "a long password"
COMMANDS = {**DIGITS, "model_name": "guarded"}


def login(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{PASSWORD}".encode()).decode()}


ADMIN, READER, WRITER = login("admin"), login("reader"), login("writer")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    """Experiment 1, `shut`, may be read by `reader` and edited by `writer`; nobody but the admin may see 0."""
    folder = tmp_path_factory.mktemp("login")
    shutil.copy(store_template, folder / "mlflow.db")
    config = folder / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLMETA_WORKER": "0", "MLMETA_BASE_APP": "basic-auth", "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of the tests", "MLMETA_STATE_DIR": str(folder / "state"),
    }  # fmt: skip
    server = Server(
        folder, f"sqlite:///{folder}/mlflow.db", options=["--app-name", "mlmeta", "--workers", "1"],
        environment=environment,
    )  # fmt: skip
    server.start()
    assert mlflow_api(server, "experiments/create", {"name": "shut"}) == {"experiment_id": "1"}
    for name, permission in (("reader", "READ"), ("writer", "EDIT")):
        mlflow_api(server, "users/create", {"username": name, "password": PASSWORD})
        grant = {"username": name, "resource_type": "experiment", "resource_id": "1", "permission": permission}
        mlflow_api(server, "users/permissions/grant", grant, version="3.0")
    yield server
    server.kill()


def mlflow_api(server: Server, path: str, document: dict[str, Any], *, version: str = "2.0") -> Any:
    status, answer = server.ask(f"/api/{version}/mlflow/{path}", document, headers=ADMIN)
    assert status == 200, answer
    return answer


def test_no_route_of_ours_answers_without_a_login(server: Server) -> None:
    _, document = server.ask(f"{API}/openapi.json", headers=ADMIN)
    asked = [(path, method) for path, methods in document["paths"].items() for method in methods]
    assert len(asked) > 20
    for path, method in [*asked, ("/mlmeta/", "get")]:
        for headers in ({}, login("nobody"), {"Authorization": "Basic !!"}, {"Authorization": "Bearer x"}):
            body = {} if method == "post" else None
            status, answer = server.ask(path, body, method=method.upper(), headers=headers)
            assert status == 401, (path, method, answer)
    assert server.ask("/health")[0] == 200


def test_a_browser_is_asked_for_the_login(server: Server) -> None:
    command = ["curl", "-s", "-i", f"{server.uri}{API}/attempts"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'www-authenticate: Basic realm="mlflow"' in answer


def test_attempts_are_made_and_seen_as_mlflow_permits(server: Server) -> None:
    assert server.ask(f"{API}/train?experiment=shut", COMMANDS, headers=READER)[0] == 403
    assert server.ask(f"{API}/train", COMMANDS, headers=WRITER)[0] == 403
    status, job = server.ask(f"{API}/train?experiment=shut", COMMANDS, headers=WRITER)
    assert (status, job["owner"]) == (202, "writer")
    run_id = job["run_id"]
    status, hidden = server.ask(f"{API}/train", {**COMMANDS, "model_name": "hidden"}, headers=ADMIN)
    assert status == 202
    for who, seen in ((READER, {"guarded"}), (WRITER, {"guarded"}), (ADMIN, {"guarded", "hidden"})):
        _, jobs = server.ask(f"{API}/jobs", headers=who)
        assert {one["name"] for one in jobs["jobs"]} == seen
        _, page = server.ask(f"{API}/attempts", headers=who)
        assert {row["model_name"] for row in page["attempts"]} == seen
    assert server.ask(f"{API}/attempts/{run_id}", headers=READER)[0] == 200
    assert server.ask(f"{API}/attempts/{hidden['run_id']}", headers=READER)[0] == 403
    assert server.ask(f"{API}/jobs/{hidden['run_id']}/log", headers=READER)[0] == 403
    assert server.ask(f"{API}/find_attempt?name=hidden", headers=READER)[0] == 404
    assert server.ask(f"{API}/curves?run_id={hidden['run_id']}", headers=READER)[0] == 404
    assert server.ask(f"{API}/attempts/{run_id}/cancel", method="POST", headers=READER)[0] == 403
    assert server.ask(f"{API}/delete_attempt?name=guarded", method="POST", headers=READER)[0] == 403
    assert server.ask(f"{API}/attempts/{run_id}", headers=ADMIN)[1]["job"]["state"] == "queued"
    weights = {**COMMANDS, "initial_weights": hidden["run_id"]}
    assert server.ask(f"{API}/train?experiment=shut", weights, headers=WRITER)[0] == 403
    assert server.ask(f"{API}/attempts/{run_id}/cancel", method="POST", headers=WRITER)[1]["state"] == "cancelled"


def test_a_name_leads_to_nobody_elses_weights_or_attempt(server: Server) -> None:
    named = {**COMMANDS, "model_name": "shared"}
    status, of_admin = server.ask(f"{API}/train", named, headers=ADMIN)
    assert status == 202
    described = {"name": "shared", "training_commands": named}
    # A name that is taken where the writer may not look does not hinder them.
    status, own = server.ask(f"{API}/create_attempt?experiment=shut", described, headers=WRITER)
    assert status == 201, own
    from_shared = {**COMMANDS, "model_name": "heir", "initial_weights": "shared"}
    status, answer = server.ask(f"{API}/train?experiment=shut", from_shared, headers=WRITER)
    assert (status, "has weights" in answer["detail"]) == (422, True)
    tags = {"run_id": own["id"], "tags": [{"key": "mlmeta.weights_sha256", "value": "0" * 64}]}
    mlflow_api(server, "runs/log-batch", tags)
    status, job = server.ask(f"{API}/train?experiment=shut", from_shared, headers=WRITER)
    assert status == 202
    _, told = server.ask(f"{API}/attempts/{job['run_id']}", headers=WRITER)
    assert told["attempt"]["training_commands"]["initial_weights"] == own["id"]
    _, jobs = server.ask(f"{API}/jobs?limit=1&state=queued", headers=WRITER)
    # One that they may not see takes no place, and is not counted.
    assert [one["name"] for one in jobs["jobs"]] == ["heir"]
    assert jobs["counts"]["queued"] < server.ask(f"{API}/jobs", headers=ADMIN)[1]["counts"]["queued"]
    for run_id in (job["run_id"], of_admin["run_id"]):
        assert server.ask(f"{API}/attempts/{run_id}/cancel", method="POST", headers=ADMIN)[0] == 200


def test_deleting_a_name_deletes_all_or_nothing(server: Server) -> None:
    named = {**COMMANDS, "model_name": "twice"}
    ids = []
    for experiment, who in (("shut", WRITER), ("0", ADMIN)):
        status, job = server.ask(f"{API}/train?experiment={experiment}", named, headers=who)
        assert status == 202
        ids.append(job["run_id"])
    grant = {"username": "reader", "resource_type": "experiment", "resource_id": "0", "permission": "MANAGE"}
    mlflow_api(server, "users/permissions/grant", grant, version="3.0")
    assert server.ask(f"{API}/delete_attempt?name=twice", method="POST", headers=READER)[0] == 403
    for run_id in ids:
        assert server.ask(f"{API}/attempts/{run_id}", headers=ADMIN)[1]["job"]["state"] == "queued"
    assert set(server.ask(f"{API}/delete_attempt?name=twice", method="POST", headers=ADMIN)[1]["deleted"]) == set(ids)
    _, jobs = server.ask(f"{API}/jobs?state=queued", headers=ADMIN)
    assert not {one["run_id"] for one in jobs["jobs"]} & set(ids)


def test_a_server_without_a_password_for_its_admin_ends_with_one_sentence(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_AUTH")}
    environment |= {"MLMETA_BASE_APP": "basic-auth", "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"}
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "mlmeta", "--port", "0"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in ended.stderr
    assert "Traceback" not in ended.stderr
