"""All that a training needs, built and checked before it starts."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mlmeta.commands.documents import TrainCommands
from mlmeta.data.account import Account, Item, Rank, Reason, Warned
from mlmeta.errors import BadInputError, CommandsError
from mlmeta.models.shapes import LayerRow
from mlmeta.training.preparation import CheckResult, check_commands, format_table

PROJECT = Path(__file__).parents[2]
LAYERS: list[dict[str, Any]] = [
    {"name": "Conv2d", "in_channels": "auto", "out_channels": 6, "kernel_size": 3},
    {"name": "ReLU", "inplace": True},
    {"name": "MaxPool2d", "kernel_size": 2},
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]
# 8×8 pictures of 3 channels, 3 labels: 6·3·3·3 + 6 and 54·3 + 3 parameters; 4 bytes a number.
ROWS = [
    LayerRow("model.layers.0", "Conv2d", (6, 6, 6), 168, 864),
    LayerRow("model.layers.1", "ReLU", (6, 6, 6), 0, 864),
    LayerRow("model.layers.2", "MaxPool2d", (6, 3, 3), 0, 216),
    LayerRow("model.layers.3", "Flatten", (54,), 0, 216),
    LayerRow("model.layers.4", "Linear", (3,), 165, 12),
]
TABLE = """\
one picture arrives as 3×8×8; a batch has 10

layer           class      output shape  parameters  bytes a batch
------------------------------------------------------------------
model.layers.0  Conv2d     6×6×6                168        8.4 KiB
model.layers.1  ReLU       6×6×6                  0        8.4 KiB
model.layers.2  MaxPool2d  6×3×3                  0        2.1 KiB
model.layers.3  Flatten    54                     0        2.1 KiB
model.layers.4  Linear     3                    165      120 bytes
------------------------------------------------------------------
sum                                             333       21.2 KiB

a fact
another
2 labels; 1 training, 0 validation, 0 test pictures; 1 left out: 1 damaged
from folder x
warning: odd"""
ACCOUNT = Account(
    ("a", "b"),
    (Item("file", "a/0.png", label="a", part="train"), Item("file", "b/0.png", Reason.DAMAGED)),
    (Warned(Rank.NAMES, "odd"),),
    "folder x",
)


def check(document: dict[str, Any], **changed: Any) -> CheckResult:
    commands = TrainCommands.model_validate({**document, "model": {"layers": LAYERS}, **changed})
    return check_commands(commands, base_dir=Path())


def test_the_rows_are_those_computed_by_hand(toy_document: dict[str, Any]) -> None:
    result = check(toy_document)
    assert result.rows == ROWS
    assert result.input_shape == (3, 8, 8)
    assert result.n_parameters == 333
    assert result.batch_size == 8
    assert result.output_bytes == 8 * (864 + 864 + 216 + 216 + 12)


def test_every_picture_stands_in_one_part(toy_document: dict[str, Any]) -> None:
    result = check(toy_document)
    assert sum(result.n_pictures.values()) == 90
    assert all(n > 0 for n in result.n_pictures.values())


def test_the_facts_name_what_was_built(toy_document: dict[str, Any]) -> None:
    result = check(toy_document, criterion={"name": "SoftMarginLoss"}, scheduler=None)
    n = result.n_pictures
    assert result.facts[0] == "SoftMarginLoss, Adam, no scheduler; 4 epochs"
    assert result.facts[1].startswith(f"keep: {n['validation']} validation pictures are too few")
    assert result.account.describe()[0] == (
        f"3 labels; {n['train']} training, {n['validation']} validation, {n['test']} test pictures"
    )


def test_the_table_is_for_people() -> None:
    result = CheckResult(ROWS, (3, 8, 8), {"train": 1}, 10, ["a fact", "another"], ACCOUNT)
    assert format_table(result) == TABLE


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"optimizer": {"name": "SGD", "lr": 0.1, "nesterov": True}}, "optimizer"),
        ({"scheduler": {"name": "StepLR", "step_size": 0}}, "scheduler"),
        ({"criterion": {"name": "CrossEntropyLoss", "weight": [1.0, 2.0]}}, "criterion"),
        ({"model": {"layers": LAYERS[:-1]}}, "model.layers.3"),
    ],
)
def test_what_a_training_would_refuse_is_refused(
    toy_document: dict[str, Any], changed: dict[str, Any], path: str
) -> None:
    with pytest.raises(CommandsError) as caught:
        check(toy_document, **changed)
    assert [fault.path for fault in caught.value.faults] == [path]


def test_a_folder_without_pictures_is_refused(toy_document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInputError):
        check(toy_document, data={"source": "folder", "path": str(tmp_path)})


def test_a_training_begins_without_what_it_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
        import sys
        from pathlib import Path
        from mlmeta.models.compiler import put_off_compiler
        put_off_compiler()
        from mlmeta.commands.parsing import load_train_commands
        from mlmeta.training.loop import run_epoch
        from mlmeta.training.preparation import prepare_training
        digits = load_train_commands(Path("digits.json"))
        run_epoch(prepare_training(digits, base_dir=Path()), 1)
        import mlmeta.training.recording
        print(*{"torchvision", "sklearn", "scipy.stats", "matplotlib", "torch._dynamo.utils"} & set(sys.modules))
    """
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path))
    arguments = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
