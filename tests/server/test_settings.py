"""The server's settings: what each variable gives, and the text of every fault."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mlmeta.errors import BadInputError
from mlmeta.server.settings import ServerSettings, find_listening, is_loopback, read_settings

ROOT = Path(__file__).parent.parent.parent


def test_without_variables_all_is_as_documented() -> None:
    assert read_settings({}) == ServerSettings()
    assert ServerSettings().data_roots == ()


def test_every_variable_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    given = {
        "MLMETA_DATA_ROOT": os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]),
        "MLMETA_QUEUE_DIR": str(tmp_path / "queue"),
        "MLMETA_MAX_BODY_BYTES": "5000",
        "MLMETA_MAX_COMMANDS_BYTES": "400",
        "MLMETA_MAX_JSON_DEPTH": "7",
        "MLMETA_MAX_QUEUE": "9",
        "MLMETA_AT_ONCE": "3",
        "MLMETA_WORKER": "0",
        "MLMETA_BASE_APP": "basic-auth",
        "MLMETA_SERVER_URI": "https://server.example:5000/ml/",
    }
    assert read_settings(given) == ServerSettings(
        data_roots=(tmp_path / "a", tmp_path / "b"),
        queue_folder=tmp_path / "queue",
        max_body_bytes=5000,
        max_commands_bytes=400,
        max_depth=7,
        max_queue=9,
        at_once=3,
        run_worker=False,
        base_app="basic-auth",
        server_uri="https://server.example:5000/ml",
    )


def test_an_empty_variable_is_as_none_at_all() -> None:
    names = ("DATA_ROOT", "QUEUE_DIR", "MAX_BODY_BYTES", "AT_ONCE", "WORKER", "BASE_APP", "SERVER_URI")
    assert read_settings({f"MLMETA_{name}": "" for name in names}) == ServerSettings()


def test_a_root_may_be_a_link_and_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert read_settings({"MLMETA_DATA_ROOT": str(tmp_path / "link")}).data_roots == (tmp_path / "real",)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("MLMETA_DATA_ROOT", "/no/such/folder", "an existing folder"),
        ("MLMETA_DATA_ROOT", __file__, "an existing folder"),
        ("MLMETA_DATA_ROOT", "bad\0name", "an existing folder"),
        ("MLMETA_DATA_ROOT", "/", "not the whole disk"),
        ("MLMETA_DATA_ROOT", "/usr/..", "not the whole disk"),
        ("MLMETA_QUEUE_DIR", __file__, "a folder"),
        ("MLMETA_MAX_BODY_BYTES", "0", "a whole number from 1 to 1,000,000,000"),
        ("MLMETA_MAX_BODY_BYTES", "-1", "a whole number"),
        ("MLMETA_MAX_BODY_BYTES", "1e6", "a whole number"),
        ("MLMETA_MAX_COMMANDS_BYTES", "9" * 5000, "a whole number"),
        ("MLMETA_MAX_JSON_DEPTH", "501", "a whole number from 1 to 500"),
        ("MLMETA_MAX_QUEUE", "1_000", "a whole number"),
        ("MLMETA_AT_ONCE", "٣", "a whole number from 1 to 1,000"),
        ("MLMETA_WORKER", "yes", "one of 1, 0"),
        ("MLMETA_BASE_APP", "basic_auth", "one of mlflow, basic-auth"),
        ("MLMETA_SERVER_URI", "localhost:5000", "an address such as"),
        ("MLMETA_SERVER_URI", "file:///etc", "an address such as"),
        ("MLMETA_SERVER_URI", "http://user:secret@host", "an address such as"),
        ("MLMETA_SERVER_URI", "http://host:99999", "an address such as"),
        ("MLMETA_SERVER_URI", "http://[::1", "an address such as"),
    ],
)
def test_a_faulty_value_is_refused_with_its_variable(name: str, value: str, allowed: str) -> None:
    with pytest.raises(BadInputError, match=f"^{name}: must be .*; got ") as caught:
        read_settings({name: value})
    assert allowed in str(caught.value)
    assert len(str(caught.value)) < 250


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(BadInputError) as caught:
        read_settings({"MLMETA_AT_ONCE": "many", "MLMETA_DATA_ROOT": "/no/such/folder", "MLMETA_WORKER": "0"})
    first, second = str(caught.value).splitlines()
    assert first == "MLMETA_DATA_ROOT: must be an existing folder, and not the whole disk; got '/no/such/folder'"
    assert second == "MLMETA_AT_ONCE: must be a whole number from 1 to 1,000; got 'many'"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.4", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_only_this_machine_reaches_the_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("arguments", "listening"),
    [
        ("--host 127.0.0.1 --port 5001 --workers 2 app:x", ("127.0.0.1", "http://127.0.0.1:5001")),
        ("--host=0.0.0.0 --port=5001", ("0.0.0.0", "http://127.0.0.1:5001")),
        ("--host :: --port 5001", ("::", "http://[::1]:5001")),
        ("--port 5001 --ssl-certfile x.pem", ("127.0.0.1", "https://127.0.0.1:5001")),
        ("--host box.example", ("box.example", "http://box.example:8000")),
        ("--port http", None),
        ("-q tests", None),
    ],
)
def test_where_uvicorn_listens_is_read_from_its_command_line(arguments: str, listening: tuple[str, str] | None) -> None:
    assert find_listening(["uvicorn", *arguments.split()]) == listening


def test_the_documentation_names_every_variable_and_its_default() -> None:
    rows = re.findall(
        r"^\| `(MLMETA_\w+)` \| ([^|]*) \|", (ROOT / "docs" / "server.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    asked: set[str] = set()

    class Asked(dict[str, str]):
        def get(self, key: str, default: object = None) -> str:  # type: ignore[override]
            asked.add(key)
            return ""

    default = read_settings(Asked())
    table = dict(rows)
    assert asked == {name for name in table if name in asked}
    numbers = {
        "MLMETA_MAX_BODY_BYTES": default.max_body_bytes,
        "MLMETA_MAX_COMMANDS_BYTES": default.max_commands_bytes,
        "MLMETA_MAX_JSON_DEPTH": default.max_depth,
        "MLMETA_MAX_QUEUE": default.max_queue,
        "MLMETA_AT_ONCE": default.at_once,
    }
    assert {name: table[name] for name in numbers} == {name: f"{value:,}" for name, value in numbers.items()}
