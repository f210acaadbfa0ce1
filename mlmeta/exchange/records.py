"""From an Attempt document to what its MLflow run holds: params, metrics, tags and times, as in mlmeta's own runs."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlmeta.commands.documents import TrainCommands, strip_operators
from mlmeta.commands.params import (
    CURVE_TAG,
    MAX_KEY,
    MAX_TAG,
    describe_architecture,
    flatten_params,
    format_param,
    may_move,
    walk_layers,
    write_curve,
)
from mlmeta.exchange.documents import AttemptFacts, ExchangedAttempt
from mlmeta.status import Status
from mlmeta.tracking.attempts import CURVES

# Tells which row of a table the attempt came from, however its columns were mapped.
ROW_TAG = "mlmeta.import_row"
# A run's name has no more characters in MLflow's tables.
_MAX_NAME = 250

MetricItem = tuple[str, float, int, int]


@dataclass(frozen=True)
class TaskFacts:
    """What is known of an attempt's task.

    Attributes:
        digest: Of the pictures; where they are not reachable, of the task's name and labels; empty for neither.
        source: ``pictures`` or ``document``: where the digest comes from.
        counts: The params ``task.*``, without the prefix.
        features: The meta-features; empty where the pictures are not reachable.
        input_shape: (channels, height, width) of a picture as the model gets it, where it is known.
        reason: Why the pictures are not reachable.
    """

    digest: str
    source: str
    counts: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, float | None] = field(default_factory=dict)
    input_shape: tuple[int, int, int] | None = None
    reason: str = ""


@dataclass(frozen=True)
class RunRecord:
    """What the run of an attempt holds.

    Attributes:
        start_ms: Milliseconds since 1970. So `end_ms`; None where nobody knows how long it took.
        metrics: Key, value, time in ms since 1970, step.
        documents: Artifacts by name.
    """

    name: str
    status: Status
    start_ms: int
    end_ms: int | None
    params: dict[str, str]
    metrics: list[MetricItem]
    tags: dict[str, str]
    documents: dict[str, Any]


def make_record(
    attempt: ExchangedAttempt, *, task: TaskFacts, network: Mapping[str, Any], file_name: str, now_s: float
) -> RunRecord:
    """Return what the run of an attempt holds.

    `network` has the params ``arch.*`` without the prefix. An attempt whose document says neither when it began nor
    when it ended ended at `now_s`, seconds since 1970.
    """
    facts, commands = attempt.facts, attempt.commands
    start_ms, end_ms = settle_times(facts, now_s=now_s)
    params = _read_params(attempt, task, network)
    status = settle_status(facts)
    documents = {"attempt.json": attempt.document}
    if commands is not None:
        documents["train_commands.json"] = attempt.document["training_commands"]
        if attempt.document.get("testing_commands") is not None:
            documents["test_commands.json"] = attempt.document["testing_commands"]
    return RunRecord(
        name=_settle_name(facts.name, commands),
        status=status,
        start_ms=start_ms,
        end_ms=end_ms,
        params=params,
        metrics=list(_read_metrics(facts, start_ms, end_ms)),
        tags={"mlflow.note.content": _write_note(facts, status, params, file_name)}
        | _read_tags(attempt, task, file_name),
        documents=documents,
    )


def _settle_name(name: str, commands: TrainCommands | None) -> str:
    return (name.strip() or (commands.model_name if commands else "unnamed"))[:_MAX_NAME]


def find_renamed(attempt: ExchangedAttempt) -> dict[str, str]:
    """Return the names of a document that MLflow does not take as they are, and what they become."""
    facts = attempt.facts
    renamed = {facts.name: _settle_name(facts.name, attempt.commands)}
    for values in (facts.params, facts.metrics, facts.curves, facts.tags):
        renamed |= {key: legal for legal, key in _legal_keys({key: key for key in values}).items()}
    return {key: legal for key, legal in renamed.items() if key != legal}


def settle_status(facts: AttemptFacts) -> Status:
    """Return the state of an attempt; where its document has none, what its results tell.

    One that was at work when its document was written is interrupted: nobody goes on with it here.
    """
    if facts.status in (Status.TRAINING, Status.TESTING):
        return Status.INTERRUPTED
    if facts.status is not None:
        return facts.status
    if facts.accuracy is not None or facts.metrics.get("accuracy") is not None:
        return Status.COMPLETE
    return Status.TRAINED if facts.training_losses else Status.INCOMPLETE


def settle_times(facts: AttemptFacts, *, now_s: float) -> tuple[int, int | None]:
    """Return start and end in ms since 1970: as the document says, else it ended now.

    Where neither a duration nor two moments are known, there is no end: to take no time at all would win every
    comparison of durations.
    """
    seconds = facts.seconds or 0.0
    if facts.started is not None:
        start = facts.started
        end = start + seconds if facts.ended is None else facts.ended
    else:
        end = now_s if facts.ended is None else facts.ended
        start = max(end - seconds, 0.0)
    start_ms, end_ms = round(start * 1000), round(end * 1000)
    return start_ms, end_ms if end_ms > start_ms else None


def describe_network(commands: TrainCommands, n_parameters: int | None) -> dict[str, Any]:
    """Return the params ``arch.*`` that the commands tell by themselves, without the prefix."""
    if not (layers := commands.model.get("layers")):
        return {} if n_parameters is None else {"n_parameters": n_parameters}
    described = describe_architecture(walk_layers(layers), n_parameters=n_parameters or 0)
    return described if n_parameters is not None else {k: v for k, v in described.items() if k != "n_parameters"}


def describe_unseen_task(attempt: ExchangedAttempt, *, reason: str = "") -> TaskFacts:
    """Return what a document tells of its task where the pictures are not reachable.

    The digest is that of the pictures, if the document knows it; else the SHA-256 (hex) of the task's name and its
    sorted labels without query operators.
    """
    note = attempt.facts.task
    labels = list(note.label_names) if note else []
    labels = labels or (attempt.commands.label_names if attempt.commands else [])
    name = note.name if note else None
    counts = {"n_labels": len(labels) or None} | ({"n_train": note.n_train, "n_test": note.n_test} if note else {})
    known = {key: value for key, value in counts.items() if value is not None}
    if note and note.digest:
        return TaskFacts(note.digest, "pictures" if note.features else "document", known, note.features)
    digest = ""
    if name or labels:
        text = json.dumps({"task": name, "labels": sorted(map(strip_operators, labels))}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
    return TaskFacts(digest, "document", known, reason=reason)


def _read_params(attempt: ExchangedAttempt, task: TaskFacts, network: Mapping[str, Any]) -> dict[str, str]:
    params = {}
    if attempt.commands is not None:
        params = flatten_params(attempt.commands.model_dump(mode="json", exclude={"schema_url"}))
    elif attempt.facts.n_parameters is not None:
        network = {"n_parameters": attempt.facts.n_parameters}
    told = {f"task.{key}": value for key, value in task.counts.items()}
    told |= {f"arch.{key}": value for key, value in network.items()}
    params |= {key: format_param(value) for key, value in told.items()}
    # Those of another tool stand behind: what mlmeta says itself goes first.
    epochs = {"n_epoch": str(attempt.facts.n_epoch)} if attempt.facts.n_epoch else {}
    return epochs | flatten_params(_legal_keys(attempt.facts.params)) | params


def _legal_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under keys that MLflow takes; keys that become the same are numbered."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        legal, number = legal_key(key), 2
        while legal in made:
            legal = f"{legal_key(key)[: MAX_KEY - 12]} {number}"
            number += 1
        made[legal] = value
    return made


def legal_key(key: str) -> str:
    """Return the key nearest to a name that MLflow takes: letters, digits, ``_ - . :`` spaces, no path but its own."""
    legal = re.sub(r"[^/\w.\- :]", "_", key)[:MAX_KEY] or "_"
    if legal == posixpath.normpath(legal) and not legal.startswith(("/", ".")):
        return legal
    return legal.replace("/", "_").lstrip(".") or "_"


def _read_metrics(facts: AttemptFacts, start_ms: int, end_ms: int | None) -> Iterator[MetricItem]:
    """Yield the curves, their moments spread over the attempt, and what came out in the end.

    No two points of a curve have the same moment: MLflow would take them for one. What is null is no metric here.
    """
    named = {key: list(enumerate(curve, start=1)) for name, key in CURVES.items() if (curve := getattr(facts, name))}
    curves = named | _legal_keys(facts.curves)
    end_ms = start_ms if end_ms is None else end_ms
    for key, points in curves.items():
        span = max(end_ms - start_ms, len(points))
        for number, (step, value) in enumerate(points, start=1):
            if value is not None:
                yield key, value, start_ms + span * number // len(points), step
    told = {"accuracy": facts.accuracy} if facts.accuracy is not None else {}
    given = _legal_keys({key: value for key, value in (facts.metrics | told).items() if value is not None})
    n_epoch = facts.n_epoch or len(facts.training_losses)
    if n_epoch and facts.seconds and not facts.curves and "epoch_seconds" not in given:
        yield "epoch_seconds", facts.seconds / n_epoch, end_ms, n_epoch
    yield from ((key, value, end_ms, 0) for key, value in given.items() if key not in curves)


def _read_tags(attempt: ExchangedAttempt, task: TaskFacts, file_name: str) -> dict[str, str]:
    facts = attempt.facts
    tags = {key: format_param(value) for key, value in facts.tags.items() if value is not None}
    # Only mlmeta says what is an attempt, and MLflow what its own tags hold.
    tags = {key: value for key, value in _legal_keys(tags).items() if may_move(key)}
    tags["mlmeta.imported"] = file_name
    tags["mlmeta.task_source"] = task.source
    if task.digest:
        tags["mlmeta.task_digest"] = task.digest
    if task.features:
        tags["mlmeta.task"] = json.dumps(dict(task.features))
    if facts.task and facts.task.name:
        tags["mlmeta.task_name"] = facts.task.name
    if attempt.commands is not None:
        tags["mlmeta.commands_digest"] = attempt.commands.digest()
    if facts.row_digest:
        tags[ROW_TAG] = facts.row_digest
    if facts.training_losses:
        tags[CURVE_TAG] = write_curve(facts.training_losses)
    return {key: value[:MAX_TAG] for key, value in tags.items()}


def _write_note(facts: AttemptFacts, status: Status, params: Mapping[str, str], file_name: str) -> str:
    """Return the short Markdown summary of a run: the result first."""
    accuracy = facts.accuracy if facts.accuracy is not None else facts.metrics.get("accuracy")
    result = f"**{status}**" if accuracy is None else f"**{status}: accuracy {accuracy:.1%}**"
    for words, curve in (("test loss", facts.test_losses), ("training loss", facts.training_losses)):
        if curve and curve[-1] is not None:
            result += f", {words} {curve[-1]:.4g}"
            break
    counts = (("n_labels", "labels"), ("n_train", "training pictures"), ("n_test", "test pictures"))
    task = [f"{params[f'task.{key}']} {words}" for key, words in counts if f"task.{key}" in params]
    if "arch.n_parameters" in params:
        task.append(f"{int(params['arch.n_parameters']):,} parameters")
    about = f"{', '.join(task)}.\n\n" if task else ""
    return f"{result}\n\n{about}Imported from {file_name}."[:MAX_TAG]
