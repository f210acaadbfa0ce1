"""The Attempt document as it is exchanged: checked as a whole, with the facts that may stand beside the commands.

Beside its own fields a document may hold ``task``, ``test_losses``, ``test_accuracies``, ``val_losses``,
``val_accuracies``, ``seconds``, ``n_parameters``, ``started`` and ``ended``; all other keys are kept and not looked at.
A document of another tool, which has no train commands, holds ``params``, ``metrics`` and ``tags`` in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mlmeta.commands.documents import MAX_EPOCHS, MAX_PICTURES, Text, TrainCommands, digest_document
from mlmeta.commands.parsing import format_path, parse_attempt
from mlmeta.errors import BadInputError, CommandsError, Fault, shorten
from mlmeta.status import Status

# About 30 years.
MAX_SECONDS = 1e9
# Larger numbers are milliseconds since 1970, not seconds.
_FIRST_MILLISECONDS = 1e11
_LATEST_S = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def read_moment(value: Any) -> Any:
    """Return a moment as seconds since 1970.

    Args:
        value: ISO 8601 text (without a time zone it is UTC), or seconds or milliseconds since 1970.

    Raises:
        ValueError: If it is neither.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        else:
            seconds = float(value) / (1000 if float(value) > _FIRST_MILLISECONDS else 1)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds < _LATEST_S:
        raise ValueError("must be a moment since 1970: ISO 8601 text, or seconds or milliseconds since 1970")
    return seconds


def _check_scalars(values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{shorten(key)} must be a string, a number, true, false or null; got {shorten(value)}")
    return values


Losses: TypeAlias = Annotated[list[float | None], Field(default_factory=list, max_length=MAX_EPOCHS)]
Moment: TypeAlias = Annotated[float | None, BeforeValidator(read_moment)]
Scalars: TypeAlias = Annotated[dict[str, Any], AfterValidator(_check_scalars), Field(default_factory=dict)]


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=(), allow_inf_nan=False)


class TaskNote(_Facts):
    """What a document says of its task."""

    name: Text | None = None
    label_names: list[Text] = Field(default_factory=list)
    n_train: int | None = Field(None, ge=0, le=MAX_PICTURES)
    n_test: int | None = Field(None, ge=0, le=MAX_PICTURES)


class AttemptFacts(_Facts):
    """What came of an attempt, as its document says.

    Attributes:
        training_losses: One an epoch; null where it was not finite. So all curves.
        seconds: How long it took.
        started: Seconds since 1970. So `ended`.
        n_parameters: Trainable numbers of its model.
        params: Of an attempt of another tool. So `metrics` and `tags`.
    """

    name: Text
    status: Status | None = Field(None, strict=False)
    n_epoch: int = Field(0, ge=0, le=MAX_EPOCHS)
    accuracy: float | None = None
    training_losses: Losses
    test_losses: Losses
    test_accuracies: Losses
    val_losses: Losses
    val_accuracies: Losses
    seconds: float | None = Field(None, ge=0, le=MAX_SECONDS)
    started: Moment = None
    ended: Moment = None
    n_parameters: int | None = Field(None, ge=0, le=2**62)
    task: TaskNote | None = None
    params: Scalars
    metrics: dict[str, float | None] = Field(default_factory=dict)
    tags: Scalars


@dataclass(frozen=True)
class ExchangedAttempt:
    """An Attempt document that has been checked.

    Attributes:
        document: As it came.
        facts: What came of it.
        commands: The train commands; None for an attempt of another tool.
        digest: SHA-256 (hex) of the document's canonical JSON.
    """

    document: dict[str, Any]
    facts: AttemptFacts
    commands: TrainCommands | None
    digest: str


def parse_exchanged(document: Any, *, source: str = "the attempt") -> ExchangedAttempt:
    """Check an Attempt document, or one of another tool: without train commands, but with params or metrics.

    Raises:
        CommandsError: With every fault that was found.
        BadInputError: If the document cannot be written as JSON again.
    """
    faults: list[Fault] = []
    commands = None
    if not _is_of_another_tool(document):
        try:
            commands = parse_attempt(document, source=source).training_commands
        except CommandsError as error:
            if not isinstance(document, Mapping):
                raise
            faults += error.faults
    try:
        facts = AttemptFacts.model_validate(document)
    except ValidationError as error:
        paths = {fault.path for fault in faults}
        faults += [fault for fault in map(_explain, error.errors(include_url=False)) if fault.path not in paths]
    if faults:
        raise CommandsError(faults, source=source)
    return ExchangedAttempt(document, facts, commands, _digest(document, source))


def _is_of_another_tool(document: Any) -> bool:
    if not isinstance(document, Mapping) or document.get("training_commands") is not None:
        return False
    return "params" in document or "metrics" in document


def _explain(details: Any) -> Fault:
    message = str(details.get("ctx", {}).get("error") or details["msg"].replace("Input should", "should"))
    came = "" if details["type"] == "missing" else shorten(details["input"])
    return Fault(format_path(details["loc"]), "is required and missing" if not came else message, came)


def _digest(document: dict[str, Any], source: str) -> str:
    try:
        return digest_document(document)
    except UnicodeEncodeError:
        raise BadInputError(f"{source}: holds text that is not Unicode") from None
    except ValueError:
        raise BadInputError(f"{source}: holds a number that is too large") from None
    except RecursionError:
        raise BadInputError(f"{source}: lists and objects lie in each other too deep") from None
