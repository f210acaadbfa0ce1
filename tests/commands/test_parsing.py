from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmeta.commands.documents import TestCommands, TrainCommands
from mlmeta.commands.parsing import (
    MAX_FILE_BYTES,
    format_path,
    load_test_commands,
    load_train_commands,
    make_test_commands,
    parse_attempt,
    parse_json,
    parse_test_commands,
    parse_train_commands,
    read_json,
)
from mlmeta.errors import BadInputError, CommandsError, MlmetaError, NotFoundError

ROOT = Path(__file__).parent.parent.parent
OLDER = Path(__file__).parent.parent / "data" / "american_dog_species_3.attempt.json"
TRAIN: dict[str, Any] = {"model_name": "dogs", "model": {"layers": [{"name": "Flatten"}]}}
TEST: dict[str, Any] = {"model_name": "dogs"}
# What pydantic says of a wrong value, and how it names the inside of a union or a validator.
PYDANTIC = re.compile(
    r"[Ii]nput|valid |validation error|instance|type=|pydantic|function-|tagged|union|discriminator|Traceback|Error|"
    r"\b(?:folder|manifest|torchvision|sample)\.[a-z]|\bdict\b|\bNone\b|\bTrue\b"
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aZ0._ '\"\n(\ud800", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("name\n", max_size=5), inner, max_size=3),
    max_leaves=8,
)


def faults_of(document: Any, parse: Any = parse_train_commands) -> list[str]:
    with pytest.raises(CommandsError) as caught:
        parse(document)
    return [str(fault) for fault in caught.value.faults]


def nested(depth: int, *, objects: bool = False) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


class TestFiles:
    def test_commands_are_read_from_a_file(self) -> None:
        assert load_train_commands(ROOT / "digits.json").model_name == "digits"

    def test_a_test_of_the_newest_attempt_is_read_from_train_commands(self) -> None:
        assert load_test_commands(ROOT / "digits.json").document() == {"model_name": "digits"}

    def test_both_commands_are_read_from_an_attempt_document(self) -> None:
        assert load_train_commands(OLDER).n_epoch == 100
        assert load_test_commands(OLDER).limit == 200

    def test_a_byte_order_mark_is_no_fault(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps(TRAIN), encoding="utf-8-sig")
        assert read_json(tmp_path / "a.json") == TRAIN

    def test_a_missing_file_names_the_nearest_one(self, tmp_path: Path) -> None:
        (tmp_path / "digits.json").write_text("{}")
        with pytest.raises(NotFoundError) as caught:
            read_json(tmp_path / "digts.json")
        near = str(tmp_path / "digits.json")
        assert str(caught.value) == f"{tmp_path / 'digts.json'}: there is no such file. Did you mean {near!r}?"

    def test_a_missing_file_unlike_all_others_names_what_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "digits.json").write_text("{}")
        with pytest.raises(NotFoundError, match=r"there is no such file; in .* there are 'digits.json'$"):
            read_json(tmp_path / "x.yaml")

    def test_a_missing_file_in_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"x\.json: there is no such file$"):
            read_json(tmp_path / "x.json")

    def test_a_missing_folder_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"there is no such file, nor the folder .*nowhere$"):
            read_json(tmp_path / "nowhere" / "x.json")

    def test_a_folder_is_no_file_and_says_what_is_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "digits.json").write_text("{}")
        with pytest.raises(BadInputError, match=r"is a folder, not a commands file; in .* there are 'digits.json'$"):
            read_json(tmp_path)

    def test_a_file_taken_for_a_folder_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(MlmetaError, match=r"^\S*a\.json.b\.json: "):
            read_json(tmp_path / "a.json" / "b.json")

    def test_what_is_not_utf8_is_told_with_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(b'{"a": "\xe9"}')
        with pytest.raises(BadInputError, match=r"a\.json: is not UTF-8 text \(byte 7\)$"):
            read_json(tmp_path / "a.json")

    def test_a_file_in_utf16_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}", encoding="utf-16")
        with pytest.raises(BadInputError, match="is not UTF-8 text"):
            read_json(tmp_path / "a.json")

    def test_a_huge_file_is_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "a.json").open("wb") as file:
            file.truncate(MAX_FILE_BYTES * 100)
        with pytest.raises(BadInputError, match=r"is too large for a commands file: more than 10,000,000 bytes$"):
            read_json(tmp_path / "a.json")

    @pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
    def test_what_is_no_files_name_is_told(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BadInputError, match=r": (is not the name of a file|cannot be read: File name too long)$"):
            read_json(f"{tmp_path}/{name}")

    def test_the_message_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(CommandsError) as caught:
            load_train_commands(tmp_path / "a.json")
        assert str(caught.value) == (
            f"{tmp_path / 'a.json'}: 2 faults\n  model_name: is required and missing\n  model: is required and missing"
        )


class TestJson:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "f: is empty"),
            (" \n", "f: is empty"),
            ("{", "f: is not JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
            ('{\n "a": 1,\n "b" 2}', "f: is not JSON: Expecting ':' delimiter at line 3, column 6"),
            ("{'a': 1}", "f: is not JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
            ("model: x", "f: is not JSON: Expecting value at line 1, column 1"),
            ("{} {}", "f: is not JSON: Extra data at line 1, column 4"),
            ('{"a": NaN}', "f: is not JSON, which has no NaN, at line 1, column 7"),
            ('{"NaN": "\\"NaN",\n  "b": -Infinity}', "f: is not JSON, which has no -Infinity, at line 2, column 8"),
            ("[Infinity]", "f: is not JSON, which has no Infinity, at line 1, column 2"),
            ("[1, -" + "9" * 5000 + "]", "f: holds a number of 5,001 digits, which is too large, at line 1, column 5"),
            ("[" * 100_000, "f: lists and objects lie in each other too deep"),
            ('{"a":' * 100_000, "f: lists and objects lie in each other too deep"),
            ("[" * 100_000 + "]" * 100_000, "f: lists and objects lie in each other too deep"),
            ('{"a": 1, "b": 2, "a": 3}', "f: 1 fault\n  a: this key stands more than once in one object"),
            (
                '{"b": [{"c": 1, "c": 2, "d": {"e": 1, "e": {"f": 1, "f": 1}}}], "a": 1, "a": 1}',
                "f: 4 faults\n"
                + "\n".join(
                    f"  {path}: this key stands more than once in one object"
                    for path in ("a", "b.0.c", "b.0.d.e", "b.0.d.e.f")
                ),
            ),
        ],
        ids=lambda value: value[:40],
    )
    def test_what_is_not_strict_json_is_told_with_its_place(self, text: str, says: str) -> None:
        with pytest.raises(BadInputError) as caught:
            parse_json(text, source="f")
        assert str(caught.value) == says

    @pytest.mark.parametrize("text", ['{"a": {"b": 1}, "b": 1}', "[1, 2.5, null, true]", '"NaN"', "5", "null"])
    def test_strict_json_is_read(self, text: str) -> None:
        assert parse_json(text, source="f") == json.loads(text)

    def test_a_number_beyond_floats_is_told_with_its_path(self) -> None:
        document = parse_json(json.dumps(TRAIN)[:-1] + ', "optimizer": {"name": "SGD", "lr": 1e400}}', source="f")
        assert faults_of(document) == ["optimizer.lr: must be a finite number; got inf"]


class TestFaults:
    @pytest.mark.parametrize("document", [[TRAIN], 5, None, "dogs.json", True, 1.5, []])
    @pytest.mark.parametrize("parse", [parse_train_commands, parse_test_commands, parse_attempt])
    def test_commands_are_an_object(self, parse: Any, document: Any) -> None:
        [fault] = faults_of(document, parse)
        assert fault.startswith("must be a JSON object; got ")

    @pytest.mark.parametrize(
        ("document", "says"),
        [
            ({"training_commands": None}, "training_commands: must be a JSON object; got null"),
            ({"training_commands": {**TRAIN, "n_epoch": 0}}, "training_commands.n_epoch: must be 1 or above; got 0"),
        ],
    )
    def test_a_fault_inside_an_attempt_document_has_its_whole_path(self, document: Any, says: str) -> None:
        assert faults_of(document) == [says]

    def test_all_faults_of_a_document_are_told_at_once_in_the_order_of_the_fields(self) -> None:
        document = {
            "optimiser": {"name": "Adam"},
            "model_name": "../x",
            "label_names": ["cat", "cat", "a\nb"],
            "data": {"source": "foldr"},
            "image_ops": {"resize": {"size": [5, 5]}},
            "transform": {"ToTensor": False},
            "model": {"layers": [{"name": "Conv2D"}, {"name": "Linear", "kernal_size": 3}]},
            "criterion": "CrossEntropyLoss",
            "optimizer": {"name": "Adam", "momentum": 0.9, "lr": 0},
            "batch_size": 0,
            "n_epoch": 1.5,
            "keep": "bset",
            "test": {"limits": 5},
        }
        assert [fault.partition(": ")[0] for fault in faults_of(document)] == [
            "model_name",
            "label_names",
            "label_names.2",
            "data.source",
            "image_ops",
            "transform.ToTensor",
            "model.layers.0.name",
            "model.layers.1.kernal_size",
            "model.layers.1.in_features",
            "model.layers.1.out_features",
            "criterion",
            "optimizer.momentum",
            "optimizer.lr",
            "batch_size",
            "n_epoch",
            "keep",
            "test.limits",
            "optimiser",
        ]

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"n_epoch": 0}, "n_epoch: must be 1 or above; got 0"),
            ({"n_epoch": -1}, "n_epoch: must be 1 or above; got -1"),
            ({"n_epoch": 1.5}, "n_epoch: must be a whole number; got 1.5"),
            ({"n_epoch": 10.0}, "n_epoch: must be a whole number; got 10.0"),
            ({"n_epoch": True}, "n_epoch: must be a whole number; got true"),
            ({"n_epoch": "10"}, "n_epoch: must be a whole number; got '10'"),
            ({"n_epoch": None}, "n_epoch: must be a whole number; got null"),
            ({"n_epoch": "__import__('os')"}, "n_epoch: must be a whole number; got \"__import__('os')\""),
            ({"n_epoch": 10**30}, f"n_epoch: must be 1,000,000 or below; got {10**30}"),
            ({"n_epoch": 10**400}, "n_epoch: must be 1,000,000 or below; got a number of about 400 digits"),
            ({"batch_size": 0}, "batch_size: must be 1 or above; got 0"),
            ({"seed": -1}, "seed: must be 0 or above; got -1"),
            ({"validation": 1}, "validation: must be 0.9 or below; got 1"),
            ({"validation": -0.5}, "validation: must be 0 or above; got -0.5"),
            ({"validation": float("nan")}, "validation: must be a finite number; got nan"),
            ({"keep": "bset"}, "keep: must be one of best, last; got 'bset'. Did you mean 'best'?"),
            ({"stop": 5}, "stop: must be an object; got 5"),
            ({"initial_weights": 5}, "initial_weights: must be a string; got 5"),
            (
                {"initial_weights": "../a.pt"},
                "initial_weights: must be null, auto, or the name or run id of an attempt; got '../a.pt'",
            ),
            ({"test": []}, "test: must be an object; got []"),
            (
                {"test": {"limits": 5}},
                "test.limits: unknown key; allowed are: limit, ids; got 5. Did you mean 'limit'?",
            ),
            ({"test": {"ids": ["a", 5]}}, "test.ids.1: must be a string; got 5"),
            ({"data": "data/dogs"}, "data: must be an object; got 'data/dogs'"),
            (
                {"data": {"path": "dogs"}},
                "data.source: is required and missing; must be one of folder, manifest, torchvision, sample",
            ),
            (
                {"data": {"source": "foldr"}},
                "data.source: must be one of folder, manifest, torchvision, sample; got 'foldr'. "
                "Did you mean 'folder'?",
            ),
            (
                {"data": {"source": None}},
                "data.source: must be one of folder, manifest, torchvision, sample; got null",
            ),
            (
                {"data": {"source": ["folder"]}},
                "data.source: must be one of folder, manifest, torchvision, sample; got ['folder']",
            ),
            (
                {"data": {"source": "folder", "pth": "dogs"}},
                "data.pth: unknown key; allowed are: source, path, test_fraction, group; got 'dogs'. "
                "Did you mean 'path'?",
            ),
            ({"data": {"source": "folder", "path": 5}}, "data.path: must be a string; got 5"),
            ({"data": {"source": "folder", "test_fraction": 1}}, "data.test_fraction: must be below 1; got 1"),
            ({"data": {"source": "manifest"}}, "data.path: is required and missing"),
            ({"data": {"source": "sample"}}, "data.name: is required and missing"),
            (
                {"data": {"source": "sample", "name": "dgits"}},
                "data.name: must be one of digits, dogs; got 'dgits'. Did you mean 'digits'?",
            ),
            ({"data": {"source": "sample", "name": "dogs", "size": 7}}, "data.size: must be 8 or above; got 7"),
            (
                {"data": {"source": "torchvision", "name": "CIFAR10", "download": 1}},
                "data.download: must be true or false; got 1",
            ),
        ],
        ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
    )
    def test_a_wrong_value_is_told_in_a_plain_sentence(self, changes: dict[str, Any], says: str) -> None:
        assert faults_of({**TRAIN, **changes}) == [says]

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("optimiser", "optimizer"),
            ("epochs", "n_epoch"),
            ("Model_Name", "model_name"),
            ("schema", "$schema"),
            ("lr", ""),
        ],
    )
    def test_an_unknown_key_lists_the_allowed_ones_and_the_nearest(self, key: str, nearest: str) -> None:
        document = {**TRAIN, key: 5}
        [fault] = faults_of(document)
        assert fault.startswith(f"{key}: unknown key; allowed are: $schema, model_name, label_names, ")
        assert fault.endswith(f"; got 5. Did you mean {nearest!r}?" if nearest else "; got 5")

    @pytest.mark.parametrize(
        "value",
        [5, 1.5, "x", True, None, [], [5], {}, {"x": 5}, nested(900), 10**400],
        ids=["5", "1.5", "x", "true", "null", "[]", "[5]", "{}", "{x: 5}", "900 lists", "400 digits"],
    )
    @pytest.mark.parametrize(
        ("kind", "field"), [(kind, field) for kind in (TrainCommands, TestCommands) for field in kind.model_fields]
    )
    def test_a_value_of_any_kind_in_any_field_gives_plain_words_or_is_taken(
        self, kind: type[TrainCommands | TestCommands], field: str, value: Any
    ) -> None:
        key = kind.model_fields[field].alias or field
        parse, document = (parse_train_commands, TRAIN) if kind is TrainCommands else (parse_test_commands, TEST)
        document = {**document, key: value}
        try:
            assert kind.model_validate(document).document() == document
        except ValueError:
            for fault in faults_of(document, parse):
                assert fault.startswith(key) or field in ("model_name", "run_id")
                assert not PYDANTIC.search(fault), fault
                assert len(fault) < 400
                assert "\n" not in fault

    @pytest.mark.parametrize("objects", [False, True], ids=["lists", "objects"])
    @pytest.mark.parametrize("depth", [70, 900, 100_000])
    @pytest.mark.parametrize(
        "place",
        [
            lambda deep: {"model": deep},
            lambda deep: {"model": {"layers": [{"name": "Flatten", "start_dim": deep}]}},
            lambda deep: {"model": {"layers": [{"name": "Sequential", "layers": deep}]}},
            lambda deep: {"transform": deep},
            lambda deep: {"transform": [{"Resize": {"size": deep}}]},
            lambda deep: {"target_transform": {"Resize": deep}},
            lambda deep: {"image_ops": deep},
            lambda deep: {"image_ops": [{"resize": {"size": deep}}]},
            lambda deep: {"image_ops": [{"filter": deep}]},
            lambda deep: {"criterion": {"name": "CrossEntropyLoss", "weight": deep}},
            lambda deep: {"optimizer": {"name": "Adam", "betas": deep}},
            lambda deep: {"scheduler": {"name": "ChainedScheduler", "schedulers": deep}},
            lambda deep: {"label_names": deep},
            lambda deep: {"data": deep},
            lambda deep: {"data": {"source": deep}},
            lambda deep: {"data": {"source": "folder", "path": deep}},
            lambda deep: {"n_epoch": deep},
            lambda deep: {"test": {"ids": deep}},
            lambda deep: {"unknown": deep},
        ],
    )
    def test_no_depth_in_no_place_ends_in_a_recursion_error(self, place: Any, depth: int, objects: bool) -> None:
        [fault] = faults_of({**TRAIN, **place(nested(depth, objects=objects))})
        assert len(fault) < 400

    @pytest.mark.parametrize(
        "changes",
        [
            {f"k{i}": i for i in range(5000)},
            {"test": {f"k{i}": i for i in range(5000)}},
            {"label_names": list(range(5000))},
            {"test": {"ids": list(range(5000))}},
            {"model": {"layers": [{"name": f"L{i}"} for i in range(2000)]}},
            {"model": {"layers": [{"name": "ReLU", **{f"k{i}": i for i in range(5000)}}]}},
            {"transform": {f"T{i}": True for i in range(5000)}},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_thousands_of_faults_give_a_message_that_can_be_read(self, changes: dict[str, Any]) -> None:
        with pytest.raises(CommandsError) as caught:
            parse_train_commands({**TRAIN, **changes})
        assert len(str(caught.value).splitlines()) == 52
        assert len(caught.value.faults) <= 200

    def test_faults_that_are_not_explained_are_counted(self) -> None:
        with pytest.raises(CommandsError, match=r"^dogs\.json: 5,000 faults\n") as caught:
            parse_train_commands({**TRAIN, **{f"k{i}": i for i in range(5000)}}, source="dogs.json")
        assert str(caught.value).endswith("\n  … and 4,950 more")

    @pytest.mark.parametrize(
        ("location", "path"),
        [
            (("model", "layers", 3, "name"), "model.layers.3.name"),
            ((), ""),
            (("a\nb", "\x1b[31m"), "'a\\nb'.'\\x1b[31m'"),
            (("x" * 1000,), "'" + "x" * 58 + "…"),
            (("",), ""),
        ],
        ids=ascii,
    )
    def test_a_path_is_one_short_printable_line(self, location: tuple[Any, ...], path: str) -> None:
        assert format_path(location) == path

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_whatever_stands_anywhere_the_commands_are_read_or_refused(self, data: st.DataObject) -> None:
        document = json.loads((ROOT / "digits.json").read_text(encoding="utf-8"))
        here: Any = document
        while True:
            key = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
            if not isinstance(here[key], dict | list) or not here[key] or data.draw(st.booleans()):
                break
            here = here[key]
        here[key] = data.draw(ANYTHING)
        told = ""
        try:
            assert parse_train_commands(document).document() == document
        except CommandsError as error:
            told = str(error)
        assert not PYDANTIC.search(told)


class TestTestCommands:
    def test_the_test_section_of_train_commands_makes_test_commands(self) -> None:
        train = parse_train_commands({**TRAIN, "test": {"limit": 5, "ids": ["a"]}})
        assert make_test_commands(train).document() == {"model_name": "dogs", "limit": 5, "ids": ["a"]}

    def test_a_run_takes_the_place_of_the_name(self) -> None:
        assert make_test_commands(parse_train_commands(TRAIN), run_id="abc").document() == {"run_id": "abc"}

    @pytest.mark.parametrize("key", ["optimizer", "n_epoch", "test"])
    def test_train_commands_are_known_by_their_keys(self, key: str) -> None:
        values = {"optimizer": {"name": "SGD"}, "n_epoch": 5, "test": {"limit": 3}}
        commands = parse_test_commands({**TRAIN, key: values[key]})
        assert commands.document() == {"model_name": "dogs"} | ({"limit": 3} if key == "test" else {})

    @pytest.mark.parametrize("testing", [{}, {"testing_commands": None}])
    def test_an_attempt_without_testing_commands_is_tested_by_its_name(self, testing: dict[str, Any]) -> None:
        document = {"name": "dogs", "training_commands": TRAIN, **testing}
        assert parse_test_commands(document).document() == {"model_name": "dogs"}

    def test_a_fault_inside_testing_commands_has_its_whole_path(self) -> None:
        document = {"training_commands": TRAIN, "testing_commands": {**TEST, "data": {"source": "folder", "path": 5}}}
        assert faults_of(document, parse_test_commands) == ["testing_commands.data.path: must be a string; got 5"]


@pytest.mark.parametrize(
    "code",
    [
        "import mlmeta; mlmeta.TrainCommands, mlmeta.load_train_commands, dir(mlmeta)",
        "import mlmeta; mlmeta.load_train_commands(FILE)",
        "import mlmeta, mlmeta.commands.json_schema as s; s.complete_schema(mlmeta.TrainCommands.model_json_schema())",
    ],
    ids=["importing", "refusing a faulty file", "the schema"],
)
def test_neither_torch_nor_mlflow_is_needed_for(code: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**TRAIN, "optimiser": 5, "model": {"layers": [{"name": "Conv2D"}]}}))
    program = f"""
import sys, json
FILE = {str(tmp_path / "a.json")!r}
said = ""
try:
    {code}
except Exception as error:
    said = type(error).__name__
heavy = [name for name in ("torch", "torchvision", "mlflow", "numpy", "PIL", "sklearn") if name in sys.modules]
print(json.dumps([said, heavy]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == ["CommandsError" if "FILE" in code else "", []]
