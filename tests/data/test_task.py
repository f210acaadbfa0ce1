"""From commands to what a training runs on: pictures, shapes, model and criterion that fit together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.task import Task, prepare_task
from mlmeta.errors import BadInputError, CommandsError, MlmetaError, PicturesError, WeightsError
from mlmeta.models.weights import save_weights
from mlmeta.spec_builder import build_model
from mlmeta.training.preparation import check_batch, prepare_criterion, prepare_model

CPU = torch.device("cpu")


def read(document: dict[str, Any], **changes: Any) -> TrainCommands:
    return parse_train_commands({**document, **changes})


def prepare(document: dict[str, Any], *, probe: bool = False, **changes: Any) -> Task:
    commands = read(document, **changes)
    return prepare_task(commands, base_dir=Path(), probe=probe, check_shape=check_batch(commands))


def make_model(document: dict[str, Any], *, base_dir: Path = Path(), **changes: Any) -> dict[str, torch.Tensor]:
    commands = read(document, **changes)
    return prepare_model(commands, n_labels=3, input_shape=(3, 8, 8), base_dir=base_dir).state_dict()


def test_a_task_is_made_of_all_pictures_of_the_commands(toy_document: dict[str, Any]) -> None:
    task = prepare(toy_document)
    assert task.n_labels == 3
    assert task.input_shape == (3, 8, 8)
    parts = {part: len(task.select(part).pictures) for part in ("train", "validation", "test")}  # type: ignore[arg-type]
    assert sum(parts.values()) == 90
    assert min(parts.values()) > 0


def test_relative_paths_are_relative_to_the_base(toy_document: dict[str, Any], colours: Path) -> None:
    commands = read(toy_document, data={"source": "folder", "path": colours.name})
    assert prepare_task(commands, base_dir=colours.parent).n_labels == 3


def test_picture_operations_and_transforms_decide_the_shape(toy_document: dict[str, Any]) -> None:
    ops = [{"convert": {"mode": "L"}}, {"resize": {"size": [7, 5]}}]
    assert prepare(toy_document, image_ops=ops).input_shape == (1, 5, 7)
    assert prepare(toy_document, transform={"Resize": {"size": [4, 6]}, "ToTensor": True}).input_shape == (3, 4, 6)
    assert prepare(toy_document, transform={"FiveCrop": {"size": 3}, "ToTensor": True}).input_shape == (3, 3, 3)


def test_random_transforms_are_for_training_only(toy_document: dict[str, Any]) -> None:
    task = prepare(toy_document, transform={"RandomVerticalFlip": {"p": 0.5}, "ToTensor": True})
    chosen = task.select("train")
    training = task.training_batches(batch_size=100, device=CPU)
    plain = task.batches(chosen, batch_size=100, device=CPU)
    assert not torch.equal(next(training.in_order())[0], next(training.in_order())[0])
    assert torch.equal(next(plain.in_order())[0], next(plain.in_order())[0])
    assert torch.equal(next(training.in_order())[1], next(plain.in_order())[1])


def test_without_random_transforms_training_sees_the_plain_pictures(toy_document: dict[str, Any]) -> None:
    task = prepare(toy_document)
    training = task.training_batches(batch_size=100, device=CPU)
    plain = task.batches(task.select("train"), batch_size=100, device=CPU)
    assert torch.equal(next(training.in_order())[0], next(plain.in_order())[0])


def test_a_training_picture_of_another_shape_is_told_before_training(toy_document: dict[str, Any]) -> None:
    transform = [{"RandomApply": {"p": 1.0, "transforms": [{"Resize": {"size": [4, 4]}}]}}, "ToTensor"]
    with pytest.raises(BadInputError, match=r"comes out as \(3, 4, 4\) in training and, .*, as \(3, 8, 8\)"):
        prepare(toy_document, transform=transform)


def test_preparing_draws_nothing_from_the_callers_generator(toy_document: dict[str, Any]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    prepare(toy_document, transform={"RandomCrop": {"size": 6}, "ToTensor": True})
    assert torch.equal(torch.rand(4), expected)


def test_n_labels_that_disagrees_with_the_data_is_a_fault_of_the_commands(toy_document: dict[str, Any]) -> None:
    with pytest.raises(CommandsError, match="n_labels: says 4; the data has 3 labels"):
        prepare(toy_document, label_names=[], n_labels=4)
    assert prepare(toy_document, label_names=[], n_labels=3).pictures.label_names == ("blue", "green", "red")


@pytest.fixture
def copy(colours: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(colours, tmp_path / "copy"))


def test_a_probe_decodes_the_first_picture_that_can_be(toy_document: dict[str, Any], copy: Path) -> None:
    (copy / "blue" / "00.png").write_bytes(b"")
    task = prepare(toy_document, probe=True, data={"source": "folder", "path": str(copy)})
    assert task.input_shape == (3, 8, 8)
    assert [picture.id for picture in task.decoded.pictures] == ["blue/01.png"]
    assert len(task.pictures.pictures) == 90


def test_bad_pictures_are_left_out_of_every_part(toy_document: dict[str, Any], copy: Path) -> None:
    for index in range(6):
        (copy / "green" / f"{index:02}.png").write_bytes(b"bad %d" % index)
    task = prepare(toy_document, data={"source": "folder", "path": str(copy)})
    assert len(task.decoded.skipped) == 6
    assert sum(len(task.select(part).pictures) for part in ("train", "validation", "test")) == 84


def test_a_label_whose_training_pictures_are_all_bad_is_told(toy_document: dict[str, Any], tmp_path: Path) -> None:
    for label, n in (("red", 20), ("green", 20), ("blue", 3)):
        (tmp_path / "d" / label).mkdir(parents=True)
        for index in range(n):
            Image.new("RGB", (4, 4), (index, n, 0)).save(tmp_path / "d" / label / f"{index}.png")
    for file in (tmp_path / "d" / "blue").iterdir():
        file.write_bytes(file.name.encode())
    data = {"source": "folder", "path": str(tmp_path / "d"), "test_fraction": 0.0}
    with pytest.raises(PicturesError, match=r"1 label\(s\) have no picture to train on: 'blue'"):
        prepare(toy_document, data=data, validation=0.0)


def test_pictures_to_test_on_need_none_to_train_on(toy_document: dict[str, Any], tmp_path: Path) -> None:
    for part, labels in (("train", "ab"), ("test", "abc")):
        for label in labels:
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / label / "0.png")
    commands = read(toy_document, label_names=[], data={"source": "folder", "path": str(tmp_path)})
    with pytest.raises(PicturesError, match="have no picture to train on: 'c'"):
        prepare_task(commands, base_dir=Path())
    task = prepare_task(commands, base_dir=Path(), training=False)
    assert task.select("test").labels.tolist() == [0, 1, 2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def test_attempts_on_the_same_pictures_share_what_was_decoded(toy_document: dict[str, Any], cache: Path) -> None:
    first = prepare(toy_document)
    again = prepare(toy_document, validation=0.4, seed=3, transform={"RandomVerticalFlip": True}, n_epoch=9)
    assert first.decoded.rows is not None
    assert again.decoded.rows is not None
    assert again.decoded.rows.entry == first.decoded.rows.entry
    assert len(list(cache.glob("*.pictures"))) == 1
    assert all(first.decoded.image(i).tobytes() == again.decoded.image(i).tobytes() for i in range(90))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_ops": [{"convert": {"mode": "L"}}]},
        {"label_names": ["red", "green"]},
        {"label_names": [str(n) for n in range(10)], "data": {"source": "sample", "name": "digits"}},
    ],
    ids=["operations", "labels", "source"],
)
def test_other_pictures_or_operations_do_not(
    toy_document: dict[str, Any], cache: Path, changes: dict[str, Any]
) -> None:
    first, other = prepare(toy_document), prepare(toy_document, **changes)
    assert first.decoded.rows is not None
    assert other.decoded.rows is not None
    assert other.decoded.rows.entry != first.decoded.rows.entry


def test_the_batches_are_the_same_with_the_cache_and_without(
    toy_document: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch() -> torch.Tensor:
        task = prepare(toy_document)
        return next(task.training_batches(batch_size=100, device=CPU, channels_last=True).shuffled(4))[0]

    cached = batch()
    monkeypatch.setenv("MLMETA_CACHE_GB", "0")
    assert torch.equal(batch(), cached)


def test_a_probe_leaves_the_cache_alone(toy_document: dict[str, Any], cache: Path) -> None:
    assert prepare(toy_document, probe=True).decoded.rows is None
    assert not cache.exists()


def test_the_seed_alone_decides_the_weights(toy_document: dict[str, Any]) -> None:
    first = make_model(toy_document, seed=4)
    torch.rand(7)
    again, other = make_model(toy_document, seed=4), make_model(toy_document, seed=5)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_a_named_model_starts_from_a_weights_file_beside_the_commands(
    toy_document: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(9)
    source = build_model({"name": "squeezenet1_1"}, n_labels=7, input_shape=(3, 32, 32))
    save_weights(source.state_dict(), tmp_path / "weights", "squeeze")
    commands = read(toy_document, model={"name": "squeezenet1_1", "weights": "weights/squeeze.pt"}, seed=1)
    plain = read(toy_document, model={"name": "squeezenet1_1"}, seed=1)
    loaded = prepare_model(commands, n_labels=3, input_shape=(3, 32, 32), base_dir=tmp_path).state_dict()
    scratch = prepare_model(plain, n_labels=3, input_shape=(3, 32, 32), base_dir=tmp_path).state_dict()
    assert torch.equal(loaded["features.0.weight"], source.state_dict()["features.0.weight"])
    assert torch.equal(loaded["classifier.1.weight"], scratch["classifier.1.weight"])
    assert not torch.equal(scratch["features.0.weight"], loaded["features.0.weight"])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no such weights file"), (b"text", "is not a state dict")]
)
def test_a_weights_file_that_cannot_be_used_is_one_clear_error(
    toy_document: dict[str, Any], tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "w.pt").write_bytes(content)
    commands = read(toy_document, model={"name": "squeezenet1_1", "weights": "w.pt"})
    with pytest.raises(MlmetaError, match=message):
        prepare_model(commands, n_labels=3, input_shape=(3, 32, 32), base_dir=tmp_path)


def test_weights_of_quite_another_model_are_refused(toy_document: dict[str, Any], tmp_path: Path) -> None:
    save_weights({"1.weight": torch.zeros(2, 2)}, tmp_path, "other")
    commands = read(toy_document, model={"name": "squeezenet1_1", "weights": "other.safetensors"})
    with pytest.raises(WeightsError, match=r"other\.safetensors: has 0% of the model's weights"):
        prepare_model(commands, n_labels=3, input_shape=(3, 32, 32), base_dir=tmp_path)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "MSELoss", "BCEWithLogitsLoss"])
def test_the_criterion_is_lower_where_the_outputs_are_right(toy_document: dict[str, Any], name: str) -> None:
    criterion = prepare_criterion(read(toy_document, criterion={"name": name}), n_labels=3)
    labels = torch.tensor([0, 2])
    right = torch.eye(3)[labels]
    assert criterion(right, labels) < criterion(-right, labels)


def test_the_criterion_takes_the_target_transform(toy_document: dict[str, Any]) -> None:
    scaled = {"Normalize": {"mean": [0.0], "std": [0.5]}}
    commands = read(toy_document, criterion={"name": "MSELoss"}, target_transform=scaled)
    criterion = prepare_criterion(commands, n_labels=3)
    assert float(criterion(2 * torch.eye(3), torch.arange(3))) == 0.0
