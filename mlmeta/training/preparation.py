"""All that a training needs, built and checked before it starts; ``mlmeta check`` shows it and trains nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlmeta.commands.documents import TrainCommands
from mlmeta.data.account import Account
from mlmeta.data.batches import Batches, choose_device, count_batches, use_channels_last
from mlmeta.data.pictures import PictureSet
from mlmeta.data.roots import confined_copy
from mlmeta.data.splits import Part
from mlmeta.data.task import CheckShape, Task, prepare_task
from mlmeta.data.transforms import build_target_transform, build_transform
from mlmeta.errors import CommandsError
from mlmeta.models.criteria import Criterion
from mlmeta.models.optimizers import build_optimizer, build_scheduler
from mlmeta.models.shapes import LayerRow, format_bytes, refuse_batch, trace_layers
from mlmeta.models.weights import load_backbone, read_weights
from mlmeta.spec_builder import build_criterion, build_model, output_form, summarize_model

# By fewer validation pictures no epoch is chosen.
FEWEST_TO_CHOOSE = 20
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class CheckResult:
    """What the commands build.

    Attributes:
        rows: One a layer.
        input_shape: (channels, height, width) of a picture.
        n_pictures: How many stand in each part.
        batch_size: Of the commands.
        facts: Lines about all else that was built.
        account: What became of the data that was looked at.
    """

    rows: list[LayerRow]
    input_shape: tuple[int, int, int]
    n_pictures: dict[Part, int]
    batch_size: int
    facts: list[str]
    account: Account

    @property
    def n_parameters(self) -> int:
        """Of the whole model."""
        return sum(row.n_parameters for row in self.rows)

    @property
    def output_bytes(self) -> int:
        """What all layers' outputs of one batch take, which a training keeps for the backward pass."""
        return sum(row.output_bytes for row in self.rows) * self.batch_size


def check_commands(commands: TrainCommands, *, base_dir: Path) -> CheckResult:
    """Build pictures, model, criterion, optimizer and scheduler without training.

    Raises:
        BadInputError: If anything cannot be used.
    """
    task = prepare_task(commands, base_dir=base_dir, probe=None, check_shape=check_batch(commands))
    rows = summarize_model(commands.model, n_labels=task.n_labels, input_shape=task.input_shape)
    model = prepare_model(commands, n_labels=task.n_labels, input_shape=task.input_shape, base_dir=base_dir)
    prepare_criterion(commands, n_labels=task.n_labels)
    optimizer = build_optimizer(commands.optimizer, model.parameters())
    counts: dict[Part, int] = {part: len(task.pictures.select(part)) for part in PARTS}
    if commands.scheduler is not None:
        n_batches = count_batches(counts["train"], commands.batch_size)
        build_scheduler(commands.scheduler, optimizer, n_epoch=commands.n_epoch, n_batches=n_batches)
    scheduler = commands.scheduler["name"] if commands.scheduler else "no scheduler"
    facts = [
        f"{commands.criterion['name']}, {commands.optimizer['name']}, {scheduler}; {commands.n_epoch} epochs",
    ]
    _, too_few = choose_keep(commands, counts["validation"], n_labels=task.n_labels)
    facts += [too_few] if too_few else []
    if commands.initial_weights is not None:
        facts.append(_describe_start(commands.initial_weights))
    return CheckResult(rows, task.input_shape, counts, commands.batch_size, facts, task.account())


def _describe_start(initial_weights: str) -> str:
    wanted = "the attempts so far" if initial_weights == "auto" else f"the attempt {initial_weights}"
    return f"initial weights would be looked for in {wanted}; they were not fetched"


def format_table(result: CheckResult) -> str:
    """Return the result as text: layer, output shape, parameters, bytes for one batch; then the sum."""
    batch = result.batch_size
    lines = [("layer", "class", "output shape", "parameters", "bytes a batch")]
    lines += [
        (row.path, row.name, "×".join(map(str, row.output_shape)), f"{row.n_parameters:,}",
         format_bytes(row.output_bytes * batch))
        for row in result.rows
    ]  # fmt: skip
    lines.append(("sum", "", "", f"{result.n_parameters:,}", format_bytes(result.output_bytes)))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    texts = ["  ".join(_align(line, widths)).rstrip() for line in lines]
    rule = "-" * len(texts[0])
    head = f"one picture arrives as {'×'.join(map(str, result.input_shape))}; a batch has {batch}"
    return "\n".join(
        [head, "", texts[0], rule, *texts[1:-1], rule, texts[-1], "", *result.facts, result.account.describe_all()]
    )


def _align(line: tuple[str, ...], widths: list[int]) -> list[str]:
    """Pad words to the right and numbers to the left."""
    return [
        text.rjust(width) if column >= 3 else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


@dataclass
class Prepared:
    """Everything that a training needs, built and checked before it starts.

    Attributes:
        keep: Which epoch's weights are kept, best or last, see `choose_keep`.
    """

    commands: TrainCommands
    task: Task
    device: torch.device
    model: nn.Module
    criterion: Criterion
    optimizer: Optimizer
    scheduler: LRScheduler | None
    batches: Batches
    validation: Batches
    keep: str


def prepare_training(commands: TrainCommands, *, base_dir: Path) -> Prepared:
    """Find the pictures and build model, criterion, optimizer and scheduler.

    Raises:
        BadInputError: If anything cannot be used; nothing has been recorded by then.
    """
    seed_everything(commands.seed)
    task = prepare_task(commands, base_dir=base_dir, check_shape=check_batch(commands))
    device = choose_device()
    model = prepare_model(commands, n_labels=task.n_labels, input_shape=task.input_shape, base_dir=base_dir).to(device)
    criterion = prepare_criterion(commands, n_labels=task.n_labels).to(device)
    optimizer = build_optimizer(commands.optimizer, model.parameters())
    batch_size, channels_last = commands.batch_size, use_channels_last(model, device)
    batches = task.training_batches(batch_size=batch_size, device=device, channels_last=channels_last)
    validation = task.batches(
        task.select("validation"), batch_size=batch_size, device=device, channels_last=channels_last
    )
    scheduler = None
    if commands.scheduler is not None:
        scheduler = build_scheduler(
            commands.scheduler, optimizer, n_epoch=commands.n_epoch, n_batches=batches.n_batches
        )
    keep, _ = choose_keep(commands, len(validation), n_labels=task.n_labels)
    return Prepared(commands, task, device, model, criterion, optimizer, scheduler, batches, validation, keep)


def choose_keep(commands: TrainCommands, n_validation: int, *, n_labels: int) -> tuple[str, str]:
    """Return which weights are kept, best or last, and a sentence where the validation part is too small to choose by.

    By fewer than 20 pictures, or fewer than 2 a label, the best epoch is found by luck: the last is kept then, unless
    the commands say themselves that the best is wanted.
    """
    needed = max(FEWEST_TO_CHOOSE, 2 * n_labels)
    if commands.keep == "last" or not 0 < n_validation < needed or commands.n_epoch == 1:
        return commands.keep, ""
    few = f"keep: {n_validation:,} validation picture{'s'[: n_validation != 1]} are too few to choose the best epoch by"
    if "keep" in commands.model_fields_set:
        return "best", f"{few} ({needed:,} are needed), which the commands ask for"
    return "last", f"{few} ({needed:,} are needed): the weights of the last are kept"


def seed_everything(seed: int) -> None:
    """Seed all generators that a training draws from, and ask CUDA for algorithms that repeat."""
    random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def check_batch(commands: TrainCommands, *, training: bool = True) -> CheckShape:
    """Return what refuses a batch that the memory could not hold, before more than one picture is decoded."""

    def check(found: PictureSet, input_shape: tuple[int, int, int]) -> None:
        kept_bytes = 0
        if training and (layers := commands.model.get("layers")):
            _, trace = trace_layers(layers, n_labels=len(found.label_names), input_shape=input_shape)
            kept_bytes = trace.kept_bytes
        n_pictures = len(found.select("train")) if training else len(found.pictures)
        refuse_batch(input_shape, min(commands.batch_size, n_pictures), kept_bytes=kept_bytes)
        counts: dict[Part, int] = {"test": n_pictures}
        if training:
            counts = {part: len(found.select(part)) for part in PARTS}
        refuse_lone_pictures(commands, counts, n_labels=len(found.label_names), input_shape=input_shape)

    return check


def refuse_lone_pictures(
    commands: TrainCommands, counts: Mapping[Part, int], *, n_labels: int, input_shape: tuple[int, int, int]
) -> None:
    """Refuse batches of one picture where a layer of the model needs more, which torch says only when it computes.

    Args:
        commands: Of the training, or of the test with the attempt's batch size.
        counts: The pictures of each part.
        n_labels: Number of labels.
        input_shape: (channels, height, width) of a picture.

    Raises:
        CommandsError: Names the layer, and why a picture stands alone.
    """
    build = partial(summarize_model, commands.model, n_labels=n_labels, input_shape=input_shape)
    for part, n_pictures in counts.items():
        # A last picture that would be alone joins the batch before it.
        if min(n_pictures, commands.batch_size) != 1 or build_transform(commands.transform, training=False).crops:
            continue
        alone = f"there is only 1 {part.replace('train', 'training')} picture"
        why = "batch_size is 1; make it 2 or more" if commands.batch_size == 1 else alone
        build(training=part == "train")
        try:
            build(training=part == "train", n_pictures=1)
        except CommandsError as error:
            faults = [replace(fault, message=f"{fault.message}, but {why}") for fault in error.faults]
            raise CommandsError(faults) from None


def prepare_model(
    commands: TrainCommands, *, n_labels: int, input_shape: tuple[int, int, int], base_dir: Path
) -> nn.Module:
    """Build the model, its weights drawn with the commands' seed or read from ``model.weights``.

    Raises:
        CommandsError: If the model cannot be built for these shapes.
        WeightsError: If the weights file is refused.
    """
    torch.manual_seed(commands.seed)
    model = build_model(commands.model, n_labels=n_labels, input_shape=input_shape)
    weights = commands.model.get("weights")
    if weights:
        with confined_copy(base_dir / weights) as file:
            load_backbone(model, read_weights(file), source=str(weights))
    return model


def prepare_criterion(commands: TrainCommands, *, n_labels: int) -> Criterion:
    """Build the criterion with the form of outputs and targets that the commands ask for.

    Raises:
        BadInputError: If the loss cannot be used so.
    """
    targets = build_target_transform(commands.target_transform, n_labels=n_labels)
    return build_criterion(commands.criterion, n_labels=n_labels, outputs=output_form(commands.model), targets=targets)
