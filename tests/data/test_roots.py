"""Where data may lie: every rule, and those who try to break it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from mlmeta.commands.documents import TestCommands, TrainCommands
from mlmeta.commands.parsing import parse_test_commands, parse_train_commands
from mlmeta.data import roots
from mlmeta.data.pictures import PictureSet, find_pictures
from mlmeta.data.roots import (
    OutsideRootsError,
    check_inside,
    check_tree,
    confine_commands,
    confined_copy,
    join_roots,
    list_folder,
    open_confined,
    open_descriptor,
    read_roots,
)
from mlmeta.data.sources import open_file
from mlmeta.errors import BadInputError, CommandsError, PicturesError

NEEDS_DIR_FD = pytest.mark.skipif(os.open not in os.supports_dir_fd, reason="opens by descriptor")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with pictures, a manifest and weights; beside it a folder that nobody may read."""
    for folder, labels in (("root/pictures", ("cat", "dog")), ("outside/pictures", ("cat", "dog"))):
        for label in labels:
            (tmp_path / folder / label).mkdir(parents=True)
            for index in range(6):
                colour = (40 * index, 90 if label == "cat" else 200, 10)
                Image.new("RGB", (8, 8), colour).save(tmp_path / folder / label / f"{index}.png")
    rows = "".join(f"pictures/{label}/{index}.png,{label}\n" for label in ("cat", "dog") for index in range(6))
    for place in ("root", "outside"):
        (tmp_path / place / "table.csv").write_text("path,label\n" + rows)
        (tmp_path / place / "weights.pt").write_bytes(b"no weights")
    return tmp_path / "root"


@pytest.fixture
def confined(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root, in force for this process."""
    monkeypatch.setenv("MLMETA_DATA_ROOT", join_roots([root]))
    return root


def train_commands(**changes: Any) -> TrainCommands:
    layers = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]
    document = {"model_name": "stranger", "model": {"layers": layers}, "transform": {"ToTensor": True}}
    return parse_train_commands(document | changes)


def folder_data(path: str) -> dict[str, Any]:
    return {"data": {"source": "folder", "path": path}}


def refuse(roots: list[Path], **changes: Any) -> CommandsError:
    with pytest.raises(CommandsError) as caught:
        confine_commands(train_commands(**changes), roots)
    return caught.value


def find(base_dir: Path, **changes: Any) -> PictureSet:
    commands = train_commands(**changes)
    return find_pictures(commands.data, commands.label_names, base_dir=base_dir)


def readable(pictures: PictureSet) -> set[str]:
    """Return the ids of the pictures that can be opened."""
    ids = set()
    for picture in pictures.pictures:
        try:
            picture.open()
        except OutsideRootsError:
            continue
        ids.add(picture.id)
    return ids


def test_paths_below_a_root_are_allowed_and_the_first_root_is_the_base(root: Path) -> None:
    for path in ("pictures", "./pictures", "pictures/", str(root / "pictures")):
        assert confine_commands(train_commands(**folder_data(path)), [root]) == root
    other = root.parent / "outside"
    assert confine_commands(train_commands(**folder_data(str(other / "pictures"))), [root, other]) == root


ESCAPES = [
    "../outside/pictures",
    "pictures/../../outside/pictures",
    "pictures/..",
    "..",
    "%2e%2e/outside/pictures",
    "%2E%2E%2Foutside",
    "%252e%252e%252foutside",
    "pictures/%00",
    "%c0%ae%c0%ae/outside",
    "%u002e%2e/outside",
    "..\\outside\\pictures",
    "pictures\\cat",
    "\\\\server\\share",
    "//server/share",
    "\u2024\u2024/outside/pictures",
    "\u2025/outside/pictures",
    "\uff0e\uff0e/outside/pictures",
    "\uff0e\uff0e\uff0foutside",
    "..\uff0foutside",
    "..\u200b/outside",
    ".\u202e./outside",
    "\ufe52\ufe52/outside",
    "pictures\u2026",
    "\uff3c\uff3cserver",
    "\uff05\uff12\uff45",
    ".. /outside",
    " ../outside",
    "... /outside",
    "pictures ",
    " pictures",
    "pictures.",
    "pictures/cat./..",
    "...",
    "/etc",
    "/etc/passwd",
    "/proc/self/root",
    "/dev/fd",
    "~",
    "~root/x",
    "~/x",
    " ~/x",
    "file:///etc",
    "file:/etc",
    "FILE://localhost/etc",
    "http://127.0.0.1/x",
    "https://example.org/x",
    "ftp://x",
    "s3://bucket",
    "C:/Windows",
    "C:Windows",
    "c:\\Windows",
    "\\\\?\\C:\\x",
    "root/../..",
]


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("kind", ["folder", "manifest", "torchvision", "weights", "test"])
def test_no_spelling_of_a_path_leads_out(root: Path, kind: str, path: str) -> None:
    if kind == "weights":
        changes: dict[str, Any] = {**folder_data("pictures"), "model": {"name": "resnet18", "weights": path}}
    else:
        source = "folder" if kind == "test" else kind
        named = {"name": "MNIST"} if kind == "torchvision" else {}
        changes = {"data": {"source": source, "path": path, **named}}
    commands = parse_test_commands({"model_name": "x", **changes}) if kind == "test" else train_commands(**changes)
    with pytest.raises(CommandsError) as caught:
        confine_commands(commands, [root])
    (fault,) = caught.value.faults
    assert fault.path == ("model.weights" if kind == "weights" else "data.path")
    assert str(root.parent) not in fault.message


@pytest.mark.parametrize("character", ["\0", "\n", "\x7f", "\x1b", "\ud800", "\r"])
def test_control_characters_and_broken_unicode_are_refused_when_the_commands_are_read(character: str) -> None:
    with pytest.raises(CommandsError, match=r"data.*: (must be a path|holds text that is not Unicode)"):
        train_commands(**folder_data(f"pictures{character}"))


@pytest.mark.parametrize("path", ["a\0b", "a\u200bb", "a\ud800b"])
def test_the_rules_hold_for_such_paths_of_programs_too(root: Path, path: str) -> None:
    data = {"source": "folder", "path": path, "test_fraction": 0.2}
    commands = train_commands().model_copy(update={"data": type(train_commands().data).model_construct(**data)})
    with pytest.raises(CommandsError, match="holds a control character"):
        confine_commands(commands, [root])


def test_what_lies_outside_gets_one_answer_be_it_there_or_not(root: Path) -> None:
    there, absent = str(root.parent / "outside"), str(root.parent / "nothing")
    messages = {refuse([root], **folder_data(path)).faults[0].message for path in (there, absent)}
    assert messages == {"lies outside the data roots of the server"}
    # A folder whose name begins like the root's is not below it.
    (root.parent / "root-of-another").mkdir()
    assert refuse([root], **folder_data(str(root.parent / "root-of-another"))).faults[0].message in messages


def test_all_faults_come_at_once(root: Path) -> None:
    weights = {"name": "resnet18", "weights": "~/w.pt"}
    data = {"source": "torchvision", "name": "MNIST", "path": "/mnt", "download": True}
    error = refuse([root], data=data, model=weights)
    assert [fault.path for fault in error.faults] == ["data.download", "data.path", "model.weights"]


def test_torchvision_may_not_fetch(root: Path) -> None:
    data = {"source": "torchvision", "name": "MNIST", "path": "pictures"}
    assert confine_commands(train_commands(data=data), [root]) == root
    assert refuse([root], data={**data, "download": True}).faults[0].path == "data.download"


def test_without_roots_only_samples_are_allowed(root: Path) -> None:
    confine_commands(train_commands(data={"source": "sample", "name": "digits"}), [])
    confine_commands(parse_test_commands({"model_name": "x"}), [])
    for data in (folder_data(str(root / "pictures"))["data"], {"source": "manifest", "path": "table.csv"}):
        (fault,) = refuse([], data=data).faults
        assert fault.path == "data.source"
        assert "--data-root" in fault.message
    sample = {"source": "sample", "name": "digits"}
    model = {"name": "resnet18", "weights": "weights.pt"}
    assert refuse([], data=sample, model=model).faults[0].path == "model.weights"
    # The commands' default is a folder.
    assert refuse([]).faults[0].path == "data.source"


def test_links_in_the_commands_path_are_followed_before_they_are_judged(root: Path) -> None:
    (root / "away").symlink_to(root.parent / "outside")
    (root / "inner").symlink_to("pictures")
    (root / "chain").symlink_to("away")
    (root / "loop").symlink_to("loop")
    (root / "table-away.csv").symlink_to(root.parent / "outside" / "table.csv")
    (root / "weights-away.pt").symlink_to("../outside/weights.pt")
    confine_commands(train_commands(**folder_data("inner")), [root])
    for path in ("away", "away/pictures", "chain/pictures", "loop", "loop/x"):
        assert refuse([root], **folder_data(path)).faults[0].path == "data.path"
    assert refuse([root], data={"source": "manifest", "path": "table-away.csv"}).faults[0].path == "data.path"
    model = {"name": "resnet18", "weights": "weights-away.pt"}
    assert refuse([root], **folder_data("pictures"), model=model).faults[0].path == "model.weights"


def test_what_is_missing_or_of_another_kind_inside_is_said_at_once(root: Path) -> None:
    assert "no such folder below" in refuse([root], **folder_data("nothing")).faults[0].message
    assert "no such folder below" in refuse([root], **folder_data("table.csv")).faults[0].message
    assert "no such file below" in refuse([root], data={"source": "manifest", "path": "pictures"}).faults[0].message


def test_a_root_may_be_a_link(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert confine_commands(train_commands(**folder_data("pictures")), [link]) == root
    assert confine_commands(train_commands(**folder_data(str(link / "pictures"))), [link]) == root
    monkeypatch.setenv("MLMETA_DATA_ROOT", str(link))
    assert len(readable(find(link, **folder_data("pictures")))) == 12


@pytest.mark.parametrize("label", ["../outside", "a/b", "..", "/etc", "cat/../../../outside/pictures/cat"])
def test_a_label_is_never_a_path(confined: Path, label: str) -> None:
    commands = train_commands(**folder_data("pictures"), label_names=["cat", label])
    confine_commands(commands, [confined])
    with pytest.raises(PicturesError, match=r"label_names: 1 label\(s\) without a folder"):
        find_pictures(commands.data, commands.label_names, base_dir=confined)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".x", "/etc/x", "a\\b", "x\0", "~x", "%2e%2e", "x\n", "a:b"])
def test_a_model_name_is_never_a_path(name: str) -> None:
    with pytest.raises(CommandsError, match="model_name: must be a safe file name"):
        train_commands(model_name=name)


def test_nothing_is_in_force_without_the_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLMETA_DATA_ROOT", raising=False)
    assert read_roots() is None
    (root / "pictures" / "cat" / "away.png").symlink_to(root.parent / "outside" / "pictures" / "cat" / "0.png")
    (root / "pictures" / "fox").symlink_to(root.parent / "outside" / "pictures" / "cat")
    assert len(readable(find(root, **folder_data("pictures")))) == 19
    with confined_copy(root.parent / "outside" / "weights.pt") as file:
        assert file == root.parent / "outside" / "weights.pt"


def test_an_empty_variable_allows_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_DATA_ROOT", join_roots([]))
    assert read_roots() == ()
    with pytest.raises(PicturesError, match="outside the data roots"):
        find(root, **folder_data("pictures"))
    assert len(find(root, data={"source": "sample", "name": "dogs", "n_per_label": 4, "size": 16}).pictures) == 36


def test_a_picture_that_is_a_link_out_is_left_out_as_unreadable(confined: Path) -> None:
    outside = confined.parent / "outside" / "pictures" / "cat" / "0.png"
    (confined / "pictures" / "cat" / "away.png").symlink_to(outside)
    (confined / "pictures" / "cat" / "nowhere.png").symlink_to(confined.parent / "nowhere.png")
    (confined / "pictures" / "cat" / "inner.png").symlink_to("../dog/0.png")
    found = find(confined, **folder_data("pictures"))
    assert {picture.id for picture in found.pictures} - readable(found) == {"cat/away.png", "cat/nowhere.png"}


def test_a_label_folder_that_is_a_link_out_is_an_error_that_names_it(confined: Path) -> None:
    (confined / "pictures" / "fox").symlink_to(confined.parent / "outside" / "pictures" / "cat")
    with pytest.raises(PicturesError, match=r"the folder fox lies outside the data roots"):
        find(confined, **folder_data("pictures"))
    # Deeper links to folders are never followed.
    (confined / "pictures" / "fox").unlink()
    (confined / "pictures" / "cat" / "more").symlink_to(confined.parent / "outside" / "pictures" / "cat")
    assert len(find(confined, **folder_data("pictures")).pictures) == 12


def test_a_folder_outside_is_not_even_listed_for_suggestions(confined: Path) -> None:
    with pytest.raises(PicturesError, match="outside the data roots") as caught:
        find(confined, **folder_data("../outside/picture"))
    assert "Did you mean" not in str(caught.value)
    # A root that is gone is not searched for beside where it was.
    (confined.parent / "roots").mkdir()
    shutil.rmtree(confined)
    with pytest.raises(PicturesError, match="there is no folder") as caught:
        find(confined.parent, **folder_data("root"))
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("exists", [True, False])
def test_manifest_rows_that_lead_out_are_unreadable_be_the_picture_there_or_not(
    confined: Path, suffix: str, exists: bool
) -> None:
    name = "0.png" if exists else "none.png"
    ways = [
        f"../outside/pictures/cat/{name}",
        str(confined.parent / "outside" / "pictures" / "dog" / name),
        f"away/dog/{name}",
        f"pictures/../../outside/pictures/dog/{name}",
    ]
    (confined / "away").symlink_to(confined.parent / "outside" / "pictures")
    inside = [f"pictures/{label}/{index}.png" for label in ("cat", "dog") for index in range(6)]
    rows = pd.DataFrame({"path": inside + ways, "label": [path.split("/")[1] for path in inside] + ["cat"] * 4})
    file = confined / f"rows.{suffix}"
    if suffix == "csv":
        rows.to_csv(file, index=False)
    else:
        rows.to_parquet(file)
    found = find(confined, data={"source": "manifest", "path": file.name})
    assert {picture.id for picture in found.pictures} - readable(found) == set(ways)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_that_is_a_link_out_is_an_error(confined: Path, suffix: str) -> None:
    rows = pd.DataFrame({"path": ["pictures/cat/0.png"], "label": ["cat"]})
    rows.to_parquet(confined.parent / "outside" / "table.parquet")
    (confined / f"away.{suffix}").symlink_to(confined.parent / "outside" / f"table.{suffix}")
    with pytest.raises(PicturesError, match="outside the data roots"):
        find(confined, data={"source": "manifest", "path": f"away.{suffix}"})


def test_weights_outside_are_an_error(confined: Path) -> None:
    (confined / "away.pt").symlink_to(confined.parent / "outside" / "weights.pt")
    for name in ("away.pt", "../outside/weights.pt"):
        with pytest.raises(BadInputError, match="outside the data roots"), confined_copy(confined / name):
            pytest.fail("it was opened")
    with confined_copy(confined / "weights.pt") as file:
        assert file.name == "weights.pt"
        assert file.read_bytes() == b"no weights"
    assert not file.exists()


def test_torchvision_data_with_a_link_out_is_an_error(confined: Path) -> None:
    data = {"source": "torchvision", "name": "MNIST", "path": "sets"}
    (confined / "sets" / "MNIST").mkdir(parents=True)
    (confined / "sets" / "MNIST" / "raw").symlink_to(confined.parent / "outside")
    with pytest.raises(PicturesError, match="the link raw lies outside the data roots"):
        find(confined, data=data)
    with pytest.raises(PicturesError, match="nothing is fetched"):
        find(confined, data={**data, "download": True})
    check_tree(confined / "pictures")


Swap = Callable[[Path, Path], None]


def swap_folder(inside: Path, outside: Path) -> None:
    inside.parent.rename(inside.parent.with_name("moved"))
    inside.parent.symlink_to(outside.parent)


def swap_file(inside: Path, outside: Path) -> None:
    inside.unlink()
    inside.symlink_to(outside)


@NEEDS_DIR_FD
@pytest.mark.parametrize("swap", [swap_file, swap_folder])
def test_a_link_swapped_in_right_after_the_check_is_not_followed(
    confined: Path, monkeypatch: pytest.MonkeyPatch, swap: Swap
) -> None:
    inside = confined / "pictures" / "cat" / "0.png"
    outside = confined.parent / "outside" / "pictures" / "cat" / "0.png"
    swaps: list[Swap] = [swap]

    def check_then_swap(file: Path, roots: Any) -> Path:
        resolved = check_inside(file, roots)
        while swaps:
            swaps.pop()(inside, outside)
        return resolved

    monkeypatch.setattr(roots, "check_inside", check_then_swap)
    with pytest.raises(OutsideRootsError):
        os.close(open_descriptor(inside, os.O_RDONLY))
    assert not swaps
    # The link is a link now, and is judged as one.
    with pytest.raises(OutsideRootsError):
        open_file(inside)
    with pytest.raises(OutsideRootsError):
        open_confined(inside)


@NEEDS_DIR_FD
def test_a_folder_swapped_for_a_link_after_the_check_is_not_listed(
    confined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = confined / "pictures" / "cat"

    def check_then_swap(file: Path, roots: Any) -> Path:
        resolved = check_inside(file, roots)
        folder.rename(folder.with_name("moved"))
        folder.symlink_to(confined.parent / "outside")
        return resolved

    monkeypatch.setattr(roots, "check_inside", check_then_swap)
    with pytest.raises(OutsideRootsError, match="the folder cat lies outside"):
        list_folder(folder)


@NEEDS_DIR_FD
def test_descriptors_are_closed_whatever_happens(confined: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for path in ("pictures/cat/0.png", "pictures/none/0.png", "pictures/cat/none.png", "../outside/table.csv"):
        for _ in range(20):
            try:
                os.close(open_descriptor(confined / path, os.O_RDONLY))
            except OSError:
                continue
    os.mkfifo(confined / "pipe")
    for name in ("pictures", "pipe"):
        with pytest.raises(OSError, match=r"directory|not a file"):
            open_confined(confined / name)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


# Trains or tests what it is told to and reports what it opened; nothing of it runs before the hook is in place.
PROGRAM = """
import json, os, sys
watched, opened = sys.argv[1], []
def note(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and arguments and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path == watched or path.startswith(watched + os.sep):
            opened.append(path)
    if event in ("socket.connect", "socket.getaddrinfo"):
        opened.append(f"{event} {arguments[1:]}")
sys.addaudithook(note)
from pathlib import Path
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import MlmetaError
from mlmeta.training.preparation import prepare_model, prepare_task
answers = []
for document in json.loads(sys.argv[2]):
    try:
        commands = parse_train_commands(document)
        task = prepare_task(commands, base_dir=Path(sys.argv[3]))
        prepare_model(commands, n_labels=task.n_labels, input_shape=task.input_shape, base_dir=Path(sys.argv[3]))
        answers.append(["ok", sorted(skipped.id for skipped in task.decoded.skipped)])
    except MlmetaError as error:
        answers.append(["refused", str(error)])
print(json.dumps([answers, opened]))
"""


class OpenCounter:
    """Counts, in the kernel, how often files of some folders are opened or the folders listed, by any library."""

    _IN_OPEN = 0x20

    def __init__(self, *folders: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            assert self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), self._IN_OPEN) >= 0

    def read(self) -> list[str]:
        """Return the names of what was opened since the last call."""
        names, content = [], b""
        try:
            while piece := os.read(self._descriptor, 65536):
                content += piece
        except BlockingIOError:
            pass
        while content:
            _, _, _, length = struct.unpack_from("iIII", content)
            names.append(content[16 : 16 + length].rstrip(b"\0").decode() or "(the folder)")
            content = content[16 + length :]
        return names


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine that writes down who came."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


def hostile_documents(root: Path, url: str) -> dict[str, Mapping[str, Any]]:
    """Return commands that all try to have something read that lies outside, with the links that they need."""
    outside = root.parent / "outside"
    for label in ("cat", "dog"):
        shutil.copytree(root / "pictures" / label, root / "linked" / label)
        shutil.copytree(root / "pictures" / label, root / "one" / label)
    (root / "linked" / "fox").symlink_to(outside / "pictures" / "cat")
    (root / "one" / "cat" / "away.png").symlink_to(outside / "pictures" / "cat" / "0.png")
    (root / "one" / "dog" / "deep").symlink_to(outside / "pictures" / "dog")
    (root / "away").symlink_to(outside)
    (root / "away.csv").symlink_to(outside / "table.csv")
    pd.read_csv(outside / "table.csv").to_parquet(outside / "table.parquet")
    (root / "away.parquet").symlink_to(outside / "table.parquet")
    (root / "away.safetensors").symlink_to(outside / "weights.pt")
    rows = "".join(f"pictures/{label}/{index}.png,{label}\n" for label in ("cat", "dog") for index in range(6))
    (root / "rows.csv").write_text(f"path,label\n{rows}../outside/pictures/cat/0.png,cat\naway/weights.pt,dog\n")
    (root / "sets" / "MNIST").mkdir(parents=True)
    (root / "sets" / "MNIST" / "raw").symlink_to(outside)
    net = {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]}

    def commands(data: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
        return {"model_name": "x", "$schema": f"{url}/schema", "transform": {"ToTensor": True}, "model": net,
                "data": {"test_fraction": 0, **data}, "validation": 0, **more}  # fmt: skip

    def weights(path: str) -> Mapping[str, Any]:
        named = {"name": "resnet18", "weights": path}
        return commands({"source": "folder", "path": "pictures"}, model=named)

    return {
        "plain": commands({"source": "folder", "path": "pictures"}),
        "one link": commands({"source": "folder", "path": "one"}),
        "rows": commands({"source": "manifest", "path": "rows.csv"}),
        "linked folder": commands({"source": "folder", "path": "linked"}),
        "folder": commands({"source": "folder", "path": "away/pictures"}),
        "up": commands({"source": "folder", "path": "../outside/pictures"}),
        "absolute": commands({"source": "folder", "path": str(outside / "pictures")}),
        "missing beside": commands({"source": "folder", "path": "../outside/picturez"}),
        "csv": commands({"source": "manifest", "path": "away.csv"}),
        "parquet": commands({"source": "manifest", "path": "away.parquet"}),
        "up to csv": commands({"source": "manifest", "path": "../outside/table.csv"}),
        "missing csv": commands({"source": "manifest", "path": "../outside/tablez.csv"}),
        "torchvision": commands({"source": "torchvision", "name": "MNIST", "path": "sets"}),
        "download": commands({"source": "torchvision", "name": "MNIST", "path": "pictures", "download": True}),
        "torchvision outside": commands({"source": "torchvision", "name": "ImageNet", "path": "../outside"}),
        "weights link": weights("away.safetensors"),
        "weights up": weights("../outside/weights.pt"),
        "weights absolute": weights(str(outside / "weights.pt")),
        "weights url": weights(f"{url}/weights.pt"),
        "file url": commands({"source": "folder", "path": f"file://{outside}/pictures"}),
        "http url": commands({"source": "manifest", "path": f"{url}/table.csv"}),
        "labels": commands({"source": "folder", "path": "pictures"}, label_names=["cat", "../../outside/pictures/dog"]),
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_a_training_process_opens_nothing_outside_its_roots(root: Path, listener: tuple[str, list[str]]) -> None:
    url, came = listener
    documents = hostile_documents(root, url)
    outside = root.parent / "outside"
    counter = OpenCounter(outside, outside / "pictures", outside / "pictures" / "cat", outside / "pictures" / "dog")
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_proxy")}
    arguments = [sys.executable, "-c", PROGRAM, str(outside), json.dumps(list(documents.values())), str(root)]
    run = subprocess.run(
        arguments, env={**variables, "MLMETA_DATA_ROOT": str(root)}, capture_output=True, text=True, check=True
    )
    answers, opened = json.loads(run.stdout)
    assert opened == []
    assert counter.read() == []
    assert came == []
    results = dict(zip(documents, answers, strict=True))
    assert results["plain"] == ["ok", []]
    assert results["one link"] == ["ok", ["cat/away.png"]]
    assert results["rows"] == ["ok", ["../outside/pictures/cat/0.png", "away/weights.pt"]]
    assert {name for name, (answer, _) in results.items() if answer == "ok"} == {"plain", "one link", "rows"}
    # The watch works: without the variable the same commands do open what lies outside.
    run = subprocess.run(
        [*arguments[:4], json.dumps([documents["one link"], documents["parquet"]]), str(root)],
        env={name: value for name, value in variables.items() if name != "MLMETA_DATA_ROOT"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(outside / "pictures" / "cat" / "0.png") in json.loads(run.stdout)[1]
    assert {"0.png", "table.parquet"} <= set(counter.read())


def test_test_commands_without_data_of_their_own_are_allowed(root: Path) -> None:
    commands = TestCommands(model_name="x")
    assert confine_commands(commands, [root]) == root
