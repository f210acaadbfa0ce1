"""The pages of a real server: what they are made of, their policy, their prefix, and who may see them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from plotly.offline import get_plotlyjs
from servers import Server

import mlmeta.server
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.exchange.importing import import_attempts
from mlmeta.server.callers import identify
from mlmeta.server.limits import PAGE_POLICY
from mlmeta.server.pages import SECTIONS, read_example, router

ROOT = Path(__file__).parent.parent.parent
FILES = Path(mlmeta.server.__file__).parent / "page"
DIGITS = json.loads((ROOT / "digits.json").read_text())
FOLDER = {"source": "folder", "path": "pictures"}
MARKUP = "<img src=x onerror=alert(1)>\"'&amp;"
PASSWORD = "a long password"
PATHS = list(SECTIONS)


def fetch(server: Server, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any, bytes]:
    """Return status, headers and body of an answer, not following where it leads."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    request = urllib.request.Request(f"{server.uri}{path}", headers=dict(headers or {}))
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def read_page(server: Server, path: str, headers: Mapping[str, str] | None = None) -> str:
    status, _, body = fetch(server, path, headers)
    assert status == 200, body
    return body.decode()


def make_server(folder: Path, template: Path, environment: Mapping[str, str], prefix: str = "") -> Server:
    shutil.copy(template, folder / "mlflow.db")
    options = ["--app-name", "mlmeta", "--workers", "1"]
    all_variables = {"MLMETA_WORKER": "0", "MLMETA_STATE_DIR": str(folder / "state"), **environment}
    return Server(folder, f"sqlite:///{folder}/mlflow.db", options=options, environment=all_variables, prefix=prefix)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    """With attempts, a task whose name is markup, and MLflow's pages below a prefix."""
    folder = tmp_path_factory.mktemp("pages")
    server = make_server(folder, store_template, {}, prefix="/ml")
    documents = [
        {
            "name": f"past-{i}",
            "training_commands": {**DIGITS, "model_name": f"past-{i}", "data": FOLDER},
            "training_losses": [2.0, 1.0], "n_epoch": 2, "accuracy": 0.5 + 0.1 * i, "status": "Complete",
            "task": {"name": MARKUP if i else "plain", "label_names": [MARKUP, "b"], "n_train": 100, "n_test": 20},
        }
        for i in range(3)
    ]  # fmt: skip
    file = folder / "attempts.json"
    file.write_text(json.dumps(documents))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.store_uri)
    try:
        import_attempts([file])
    finally:
        mlflow.set_tracking_uri(before)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def run_id(server: Server) -> str:
    """An attempt that somebody has given a name of markup in MLflow."""
    client = MlflowClient(server.store_uri)
    run = client.search_runs(["0"], "attributes.run_name = 'past-1'")[0]
    client.update_run(run.info.run_id, name=MARKUP)
    return str(run.info.run_id)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    """Without attempts, on top of MLflow's basic-auth app."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic-auth app needs Flask-WTF")
    folder = tmp_path_factory.mktemp("guarded")
    config = folder / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLMETA_BASE_APP": "basic-auth", "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of the tests",
    }  # fmt: skip
    server = make_server(folder, store_template, environment)
    server.start()
    yield server
    server.kill()


def login() -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()}


def find_addresses(page: str) -> list[str]:
    return [unescape(found) for found in re.findall(r'(?:href|src|data-plotly)="([^"]*)"', page)]


@pytest.mark.parametrize("path", [*PATHS, "attempts/{run_id}"])
def test_every_page_answers_below_the_prefix_with_the_policy(server: Server, run_id: str, path: str) -> None:
    status, headers, body = fetch(server, f"/mlmeta/{path.format(run_id=run_id)}")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"] == PAGE_POLICY
    assert "unsafe-eval" not in PAGE_POLICY
    assert "script-src 'self';" in PAGE_POLICY
    page = body.decode()
    outside = [one for one in find_addresses(page) if not one.startswith(("/ml/", "#", "data:,"))]
    assert outside == []
    assert re.findall(r'<script(?!([^>]* src=| type="application/json"))', page) == []
    assert re.findall(r"<[a-z][^<>]*\son[a-z]+=", re.sub(r'"[^"]*"', "", page)) == []
    assert "{{" not in page
    assert "{%" not in page


@pytest.mark.parametrize("path", PATHS)
def test_the_navigation_says_where_one_is(server: Server, path: str) -> None:
    page = read_page(server, f"/mlmeta/{path}")
    assert re.findall(r'href="([^"]*)" aria-current="page"', page) == [f"/ml/mlmeta/{path}"]
    assert page.count("<h1>") == 1


@pytest.mark.parametrize("path", [*PATHS, "attempts/{run_id}"])
def test_all_that_a_page_loads_is_there_and_may_be_kept(server: Server, run_id: str, path: str) -> None:
    page = read_page(server, f"/mlmeta/{path.format(run_id=run_id)}")
    wanted = {one.removeprefix("/ml") for one in find_addresses(page) if "/assets/" in one}
    assert len(wanted) == (6 if path in ("params", "tasks") else 3)
    seen: set[str] = set()
    while wanted:
        address = wanted.pop()
        status, headers, body = fetch(server, address)
        assert status == 200, address
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert headers["x-content-type-options"] == "nosniff"
        seen.add(address)
        if not address.endswith("plotly.js"):
            folder = address.rpartition("/")[0]
            names = re.findall(r'from "\./([a-z_]+\.js)"|^import "\./([a-z_]+\.js)"', body.decode(), re.MULTILINE)
            wanted |= {f"{folder}/{a or b}" for a, b in names} - seen


def test_plotly_is_the_one_that_the_package_brings_and_travels_packed(server: Server) -> None:
    (address,) = re.findall(r'data-plotly="/ml([^"]*)"', read_page(server, "/mlmeta/curves"))
    _, _, plain = fetch(server, address)
    _, headers, packed = fetch(server, address, {"Accept-Encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    assert headers["content-type"] == "text/javascript; charset=utf-8"
    assert plain == gzip.decompress(packed) == get_plotlyjs().encode()
    assert len(packed) < len(plain) / 2


@pytest.mark.parametrize(
    "address",
    [
        "/mlmeta/assets/000000000000/page.css",
        "/mlmeta/assets/plotly-0.0.0/plotly.js",
        "/mlmeta/assets/{version}/nothing.js",
        "/mlmeta/assets/{version}/frame.html",
        "/mlmeta/assets/{version}/..%2fpages.py",
        "/mlmeta/assets/{version}/%2e%2e%2fpages.py",
        "/mlmeta/assets/{version}/..%5cpages.py",
        "/mlmeta/nothing",
    ],
)
def test_nothing_else_is_sent(server: Server, address: str) -> None:
    version = re.findall(r"/assets/([0-9a-f]{12})/", read_page(server, "/mlmeta/"))[0]
    status, _, body = fetch(server, address.format(version=version))
    assert status == 404
    assert b"APIRouter" not in body


def test_a_task_whose_name_is_markup_stands_as_text(server: Server) -> None:
    page = read_page(server, "/mlmeta/")
    assert "<img" not in page
    options = {unescape(one) for one in re.findall(r'<option value="([^"]*)"', page)}
    assert {"", "plain", MARKUP, "accuracy"} <= options


@pytest.mark.parametrize("path", ["", "params", "tasks", "next"])
def test_what_stands_in_an_address_is_text(server: Server, path: str) -> None:
    query = "?task=%22%3E%3Cimg%20src=x%3E&metric=%22%3E%3Cimg%3E&filter=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"
    page = read_page(server, f"/mlmeta/{path}{query}")
    assert "<img" not in page
    assert "<script>" not in page


def test_a_run_whose_name_is_markup_stands_as_text(server: Server, run_id: str) -> None:
    page = read_page(server, f"/mlmeta/attempts/{run_id}")
    assert "<img" not in page
    assert unescape(re.findall(r"<h1[^>]*>([^<]*)</h1>", page)[0]) == MARKUP
    assert unescape(re.findall(r"<title>([^<]*)</title>", page)[0]) == f"{MARKUP} · mlmeta"


def test_an_attempt_that_is_not_there_has_a_page_that_says_so(server: Server) -> None:
    status, headers, body = fetch(server, "/mlmeta/attempts/nothing")
    assert (status, headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is no such attempt" in body.decode()


def test_a_link_leads_to_the_run_in_mlflow(server: Server, run_id: str) -> None:
    status, headers, _ = fetch(server, f"/mlmeta/mlflow/{run_id}")
    assert status == 302
    assert headers["location"].startswith(f"/ml/#/experiments/0/runs/{run_id}")


def test_the_address_without_its_slash_leads_to_the_first_page(server: Server) -> None:
    status, headers, _ = fetch(server, "/mlmeta")
    assert (status, headers["location"]) == (308, "/ml/mlmeta/")


def test_every_route_asks_who_asks() -> None:
    for route in router.routes:
        assert identify in [one.call for one in route.dependant.dependencies], route.path  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "path", [*PATHS, "attempts/0", "mlflow/0", "assets/000000000000/page.css", "assets/plotly-0/plotly.js"]
)
def test_nothing_is_shown_without_a_login(guarded: Server, path: str) -> None:
    status, headers, body = fetch(guarded, f"/mlmeta/{path}")
    assert status == 401
    assert "Basic" in headers["www-authenticate"]
    assert b"<html" not in body


def test_without_attempts_the_pages_explain_how_to_make_the_first(guarded: Server) -> None:
    for path in PATHS:
        page = read_page(guarded, f"/mlmeta/{path}", login())
        assert ("No attempts yet" in page) == (path not in ("queue", "new"))
        if path not in ("queue", "new"):
            assert "mlmeta train digits.json" in page
            (form,) = re.findall(r"<textarea[^>]*>([^<]*)</textarea>", page)
            assert json.loads(unescape(form)) == json.loads(read_example())


def test_what_needs_a_login_is_kept_by_the_browser_alone(guarded: Server) -> None:
    (style,) = re.findall(r'rel="stylesheet" href="([^"]*)"', read_page(guarded, "/mlmeta/", login()))
    _, headers, _ = fetch(guarded, style, login())
    assert headers["cache-control"].startswith("private, ")


def test_the_example_is_valid_and_needs_no_folder() -> None:
    commands = parse_train_commands(json.loads(read_example()), source="the example")
    assert commands.data.source == "sample"


@pytest.mark.parametrize("file", sorted(FILES.glob("*.js")), ids=lambda file: file.name)
def test_no_script_writes_data_as_markup_or_makes_code_of_text(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text) == []
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
