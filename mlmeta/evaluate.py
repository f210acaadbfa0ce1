"""Test an attempt: how well its weights do on pictures that no training saw.

`evaluate_attempt` looks an attempt up, loads its weights and records the test (`mlmeta.training.evaluation`) as a child
run. The MLproject entry point ``evaluate`` is ``python -m mlmeta.evaluate``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlmeta.console import changing_commands, reporting_errors
from mlmeta.errors import CommandsError, Fault, PicturesError, nearest_name, shorten
from mlmeta.models.compiler import put_off_compiler
from mlmeta.tracking.store import current_uri, hide_password

if TYPE_CHECKING:
    from mlmeta.commands.documents import TestCommands, TrainCommands
    from mlmeta.data.task import Task
    from mlmeta.tracking.attempts import AttemptRecord


def merge_commands(train: TrainCommands, test: TestCommands) -> TrainCommands:
    """Return the attempt's train commands with what the test commands say put in.

    Raises:
        CommandsError: If they do not go together.
    """
    from mlmeta.commands.parsing import parse_train_commands

    given = test.document()
    keys = ("data", "image_ops", "transform", "target_transform", "model", "criterion", "batch_size", "seed")
    document = train.document() | {key: given[key] for key in keys if given.get(key) is not None}
    return parse_train_commands(document)


def _check_labels_known(tested: list[str], trained: list[str]) -> None:
    from mlmeta.commands.documents import strip_operators

    known = {strip_operators(label) for label in trained}
    faults = [
        Fault(f"label_names.{index}", "is not a label of the attempt", shorten(label), nearest_name(label, known))
        for index, label in enumerate(tested)
        if strip_operators(label) not in known
    ]
    if faults:
        raise CommandsError(faults, source="the test commands")


def evaluate_attempt(
    test: TestCommands, *, base_dir: Path, data_dir: Path | None = None
) -> tuple[str, dict[str, float]]:
    """Test an attempt that MLflow knows, as a child run; its figures go to the attempt too.

    Args:
        test: Which attempt, and on what: of its own data the test part, of other data all is tested.
        base_dir: What relative paths in the test commands are relative to.
        data_dir: What those in the attempt's own commands are relative to; None for where they were.

    Returns:
        The run id of the test, and its metrics.

    Raises:
        NotFoundError: If there is no such attempt, or it has no weights.
        WeightsError: If the weights are not those that were recorded, or do not fit.
        BadInputError: If pictures or commands cannot be used.
    """
    from mlmeta.data.batches import choose_device
    from mlmeta.models.weights import load_weights, read_weights
    from mlmeta.spec_builder import output_form
    from mlmeta.tracking.attempts import download_weights, find_attempt
    from mlmeta.tracking.runs import record_test
    from mlmeta.training.evaluation import TestPlan, test_model
    from mlmeta.training.preparation import prepare_criterion, prepare_model
    from mlmeta.training.recording import record_account

    attempt = find_attempt(name=test.model_name, run_id=test.run_id)
    commands = merge_commands(attempt.commands, test)
    folder = base_dir if test.data is not None else data_dir or attempt.commands_dir
    task = _prepare_tested(test, attempt, commands, folder)
    with tempfile.TemporaryDirectory() as temporary:
        file = download_weights(attempt, Path(temporary))
        state = read_weights(file, sha256=attempt.weights_sha256)
        bare = _without_weights(commands)
        model = prepare_model(bare, n_labels=task.n_labels, input_shape=task.input_shape, base_dir=folder)
        load_weights(model, state, source=file.name)
    device = choose_device()
    criterion = prepare_criterion(commands, n_labels=task.n_labels).to(device)
    plan = TestPlan(test.limit, tuple(test.ids), commands.seed if test.seed is None else test.seed, commands.batch_size)
    with record_test(attempt, test.document()) as recorder:
        record_account(task, recorder, training=False)
        metrics = test_model(
            model.to(device), criterion, task, plan,
            form=output_form(commands.model), recorder=recorder, name=attempt.name,
        )  # fmt: skip
    return recorder.run_id, metrics


def _prepare_tested(test: TestCommands, attempt: AttemptRecord, commands: TrainCommands, folder: Path) -> Task:
    from mlmeta.data.task import prepare_task
    from mlmeta.training.preparation import check_batch

    _check_labels_known(test.label_names or [], attempt.label_names)
    is_other = test.data is not None and commands.data != attempt.commands.data
    chosen = _with_labels(commands, test.label_names or ([] if is_other else attempt.label_names))
    check_shape, test_all = check_batch(chosen, training=False), is_other and not test.ids
    task = prepare_task(chosen, base_dir=folder, training=False, test_all=test_all, check_shape=check_shape)
    return _relabel(task, attempt.label_names)


def _with_labels(commands: TrainCommands, label_names: list[str]) -> TrainCommands:
    """Return the commands with the labels to test on; the number of labels is the attempt's own."""
    return commands.model_copy(update={"label_names": label_names, "n_labels": 0})


def _without_weights(commands: TrainCommands) -> TrainCommands:
    model: Mapping[str, Any] = {key: value for key, value in commands.model.items() if key != "weights"}
    return commands.model_copy(update={"model": model})


def _relabel(task: Task, label_names: list[str]) -> Task:
    """Return the task with the label indices of the attempt, whose order the weights know; other labels are left out.

    Raises:
        PicturesError: If none is known to the attempt.
    """
    from mlmeta.commands.documents import strip_operators
    from mlmeta.data.account import Item, Reason, name_some

    found = task.pictures
    index = {strip_operators(label): position for position, label in enumerate(label_names)}
    index |= {label: position for position, label in enumerate(label_names)}
    to_attempt = [index.get(label, index.get(strip_operators(label))) for label in found.label_names]
    pictures = tuple(replace(p, label=place) for p in found.pictures if (place := to_attempt[p.label]) is not None)
    if not pictures:
        ours, theirs = name_some(label_names), name_some(found.label_names)
        raise PicturesError(f"data: no label of {found.source} ({theirs}) is one of the attempt's ({ours})")
    others = [
        Item(found.kind, p.id, Reason.OTHER_LABEL, found.label_names[p.label])
        for p in found.pictures if to_attempt[p.label] is None
    ]  # fmt: skip
    names = tuple(label_names)
    return replace(task, pictures=replace(found, label_names=names, pictures=pictures, items=(*found.items, *others)))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return a test's figures on one line, for people."""
    shares = {key: value for key, value in metrics.items() if key != "test_loss"}
    words = [f"{key.replace('_', ' ')} {value:.1%}" for key, value in shares.items()]
    return ", ".join([*words, f"test loss {metrics['test_loss']:.4g}"])


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@changing_commands
@reporting_errors
def evaluate(config: Path, base_dir: Path | None, changes: tuple[str, ...]) -> None:
    """Test an attempt as the test commands in CONFIG say.

    CONFIG may also be the attempt's train commands: then the newest attempt of that name is tested.
    """
    from mlmeta.commands.parsing import load_test_commands

    commands = load_test_commands(config, changes)
    put_off_compiler()
    run_id, metrics = evaluate_attempt(commands, base_dir=base_dir or config.parent, data_dir=base_dir)
    click.echo(f"{commands.model_name or commands.run_id}: {format_metrics(metrics)}")
    click.echo(f"run {run_id} in {hide_password(current_uri())}")


def main() -> None:
    """Run ``mlmeta evaluate`` with the arguments of this process."""
    evaluate(prog_name="mlmeta evaluate")


if __name__ == "__main__":
    main()
