"""`mlmeta server`: the process that it becomes, and what it says before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlmeta.errors import BadInputError
from mlmeta.server.cli import describe_server, plan_server

COMMAND = (sys.executable, "-m", "mlflow", "server", "--app-name", "mlmeta")


def plan(*options: str, **more: Any) -> Any:
    return plan_server(options, **{"environ": {"PATH": "/bin"}, **more})


def test_mlflows_options_come_after_the_apps_name() -> None:
    process = plan("--port", "5001", "--workers=2")
    assert process.arguments == (*COMMAND, "--port", "5001", "--workers=2")
    # The variable is there and empty: no file may be opened.
    expected = {"PATH": "/bin", "MLMETA_DATA_ROOT": "", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    assert process.environ == expected


def test_options_become_variables_and_win_over_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    there = {"MLMETA_DATA_ROOT": str(tmp_path), "MLMETA_AT_ONCE": "7", "MLMETA_MAX_QUEUE": "5"}
    roots = [str(tmp_path / "a"), str(tmp_path / "b")]
    process = plan(data_roots=roots, at_once=2, run_worker=False, auth=True, environ=there)
    assert process.environ["MLMETA_DATA_ROOT"] == os.pathsep.join([str(tmp_path / "a")] * 2)
    settings = process.settings
    assert settings.data_roots == (tmp_path / "a", tmp_path / "a")
    assert (settings.at_once, settings.run_worker, settings.base_app, settings.max_queue) == (2, False, "basic-auth", 5)


def test_what_is_not_given_stays_as_the_environment_says(tmp_path: Path) -> None:
    there = {
        "MLMETA_DATA_ROOT": str(tmp_path),
        "MLMETA_AT_ONCE": "7",
        "MLMETA_WORKER": "0",
        "MLMETA_BASE_APP": "basic-auth",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true",
    }
    assert plan(environ=there).environ == there


@pytest.mark.parametrize("options", [["--app-name", "basic-auth"], ["--app-name=mlmeta"]])
def test_another_app_is_refused(options: list[str]) -> None:
    with pytest.raises(BadInputError, match="--app-name: is mlmeta already"):
        plan(*options)


def test_trainings_without_a_login_are_warned_of() -> None:
    assert "MLFLOW_TRACKING_USERNAME" in describe_server(plan(auth=True))[-1]
    named = {"PATH": "/bin", "MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": "x"}
    for process in (plan(auth=True, environ=named), plan(auth=True, run_worker=False), plan()):
        assert "MLFLOW_TRACKING_USERNAME" not in " ".join(describe_server(process))


@pytest.mark.parametrize("root", ["/no/such/folder", "/", __file__])
def test_a_faulty_root_is_refused_with_its_option(root: str) -> None:
    with pytest.raises(BadInputError, match=r"^--data-root: must be "):
        plan(data_roots=[root])


def test_a_root_that_the_variable_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"a{os.pathsep}b").mkdir()
    with pytest.raises(BadInputError, match="--data-root: its path may hold no"):
        plan(data_roots=[str(tmp_path / f"a{os.pathsep}b")])


def test_a_faulty_variable_is_refused_before_the_server_starts() -> None:
    with pytest.raises(BadInputError, match=r"^MLMETA_MAX_QUEUE: must be"):
        plan(environ={"MLMETA_MAX_QUEUE": "many"})


@pytest.mark.parametrize(
    ("options", "environ", "host"),
    [
        ([], {}, "127.0.0.1"),
        ([], {"MLFLOW_HOST": "0.0.0.0"}, "0.0.0.0"),
        (["--host", "::"], {}, "::"),
        (["--host=10.0.0.1"], {"MLFLOW_HOST": "0.0.0.0"}, "10.0.0.1"),
        (["-h", "0.0.0.0", "--port", "1"], {}, "0.0.0.0"),
        (["-h0.0.0.0"], {}, "0.0.0.0"),
        (["--host", "0.0.0.0", "--host", "127.0.0.1"], {}, "127.0.0.1"),
    ],
)
def test_whoever_opens_the_server_to_others_without_a_login_is_warned(
    options: list[str], environ: dict[str, str], host: str
) -> None:
    lines = describe_server(plan(*options, environ=environ))
    assert len(lines) == (2 if host == "127.0.0.1" else 3)
    assert all(f"listens on {host} and asks for no login" in line for line in lines[2:])
    named = {**environ, "MLFLOW_TRACKING_USERNAME": "trainer"}
    assert len(describe_server(plan(*options, environ=named, auth=True))) == 2


def test_it_says_which_roots_and_which_queue(tmp_path: Path) -> None:
    line, _ = describe_server(plan(data_roots=[str(tmp_path)], environ={"MLMETA_QUEUE_DIR": str(tmp_path / "q")}))
    assert line == f"data roots: {tmp_path}; queue: {tmp_path / 'q'}"
    line, _ = describe_server(plan())
    assert line.startswith("data roots: none (only mlmeta's samples")


@pytest.mark.parametrize(
    ("options", "environ", "store", "says"),
    [
        ([], {}, None, "store: the default of MLflow; pages: http://127.0.0.1:5000/mlmeta/"),
        ([], {"MLFLOW_TRACKING_URI": "sqlite:///a.db"}, "sqlite:///a.db", "store: sqlite:///a.db; pages: "),
        (
            ["--backend-store-uri", "sqlite:///b.db"],
            {"MLFLOW_TRACKING_URI": "sqlite:///a.db"},
            None,
            "store: sqlite:///b",
        ),
        ([], {"MLFLOW_BACKEND_STORE_URI": "x", "MLFLOW_TRACKING_URI": "sqlite:///a.db"}, "x", "store: x; pages"),
        ([], {"MLFLOW_TRACKING_URI": "http://h:1"}, None, "MLFLOW_TRACKING_URI names a server, and is not followed"),
        (["--port", "9", "--static-prefix", "/ml"], {}, None, "pages: http://127.0.0.1:9/ml/mlmeta/"),
        ([], {"MLFLOW_TRACKING_URI": "postgresql://me:secret@h/x"}, "postgresql://me:secret@h/x", "me:***@h/x"),
    ],
)
def test_it_follows_the_tracking_uri_to_a_store_and_says_so(
    options: list[str], environ: dict[str, str], store: str | None, says: str
) -> None:
    process = plan(*options, environ=environ)
    assert process.environ.get("MLFLOW_BACKEND_STORE_URI") == store
    line = describe_server(process)[1]
    assert says in line
    assert "secret" not in line


# Stands in for the program that mlmeta becomes, so that the test sees its command line and no server starts.
PROGRAM = """
import json, os, sys
def show(file, arguments, environ):
    print(json.dumps([file, arguments, environ["MLMETA_DATA_ROOT"], environ["MLMETA_AT_ONCE"]]))
os.execvpe = show
from mlmeta.cli import main
main()
assert "mlflow" not in sys.modules and "torch" not in sys.modules
"""


def run(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "server", *arguments],
        capture_output=True, text=True, env={**os.environ, **(environ or {})},
    )  # fmt: skip


@pytest.mark.parametrize("separator", [["--"], []])
def test_the_command_becomes_mlflows_server(tmp_path: Path, separator: list[str]) -> None:
    done = run("--data-root", str(tmp_path), "--at-once", "2", *separator, "--port", "5001", "--host=0.0.0.0")
    arguments = [*COMMAND, "--port", "5001", "--host=0.0.0.0"]
    assert done.stdout.replace("'", '"').startswith(f'["{sys.executable}", {arguments!r}'.replace("'", '"'))
    assert done.stdout.rstrip().endswith(f'"{tmp_path}", "2"]')
    first, _, third = done.stderr.splitlines()
    assert first.startswith(f"mlmeta: data roots: {tmp_path}; queue: ")
    assert third.startswith("mlmeta: warning: the server listens on 0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--data-root", "/no/such"], "--data-root: must be an existing folder"), (["--at-once", "0"], "--at-once"),
     (["--", "--app-name", "x"], "--app-name: is mlmeta already")],
)  # fmt: skip
def test_faults_end_in_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
