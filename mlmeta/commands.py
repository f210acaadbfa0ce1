"""The commands: the JSON documents that say how to train and how to test one attempt.

`TrainCommands` and `TestCommands` hold what a document says, field by field under the document's own names;
`Attempt` is the exchange document that holds both and what came of them. Every fault of a document is reported
at once, see `mlmeta.documents`. Nothing here needs torch or MLflow.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from mlmeta import specs
from mlmeta.errors import Fault
from mlmeta.schema import named_schema
from mlmeta.status import Status

_NAME = re.compile(r"[^\W_][\w .,+=@()-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
MAX_EPOCHS = 1_000_000
MAX_BATCH = 1_000_000


def _line_error(location: specs.Location, fault: Fault, came: Any) -> InitErrorDetails:
    context = {"message": fault.message, "came": fault.came, "nearest": fault.nearest}
    return InitErrorDetails(type=PydanticCustomError("fault", "{message}", context), loc=location, input=came)


def _checked(rule: Callable[[Any], Iterator[specs.Located]]) -> BeforeValidator:
    """Make a validator that raises every fault that a rule of `mlmeta.specs` finds."""

    def validate(value: Any) -> Any:
        errors = [_line_error(location, fault, value) for location, fault in rule(value)]
        if errors:
            raise ValidationError.from_exception_data("commands", errors)
        return value

    return BeforeValidator(validate)


Named: TypeAlias = dict[str, Any]
Model: TypeAlias = Annotated[Named, _checked(specs.check_model), named_schema("model")]
Criterion: TypeAlias = Annotated[Named, _checked(specs.check_role("criterion")), named_schema("criterion")]
Optimizer: TypeAlias = Annotated[Named, _checked(specs.check_optimizer), named_schema("optimizer")]
Scheduler: TypeAlias = Annotated[Named, _checked(specs.check_role("scheduler")), named_schema("scheduler")]
ImageOps: TypeAlias = Annotated[list[Named], _checked(specs.check_image_ops), named_schema("image_op")]
Transform: TypeAlias = Annotated[Any, _checked(specs.check_transform), named_schema("transform")]


class _Commands(BaseModel):
    """What all parts of a document share: unknown keys and values of another type are faults."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class FolderData(_Commands):
    """Pictures in a folder: ``<path>/<label>/…`` or ``<path>/train|test/<label>/…``."""

    source: Literal["folder"] = Field("folder", description="pictures in one folder a label")
    path: str = Field("data", min_length=1, description="the folder, relative to the commands file")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share put aside for the test where no part is named test"
    )


class ManifestData(_Commands):
    """Pictures listed in a CSV or Parquet table with the columns path, label and, if wanted, split and id."""

    source: Literal["manifest"] = Field(description="pictures listed in a table: path,label[,split][,id]")
    path: str = Field(min_length=1, description="the CSV or Parquet file, relative to the commands file")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share put aside for the test where no split is named test"
    )


class TorchvisionData(_Commands):
    """A classifying data set of ``torchvision.datasets``."""

    source: Literal["torchvision"] = Field(description="a data set of torchvision.datasets")
    name: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$", description="its class, such as OxfordIIITPet")
    path: str = Field("data", min_length=1, description="where its files are, or are put")
    download: bool = Field(False, description="fetch the files where they are missing")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share put aside where the data set has no test part")


class SampleData(_Commands):
    """A picture set that mlmeta brings: no files, no network."""

    source: Literal["sample"] = Field(description="built in: real handwritten digits, or drawn dogs")
    name: Literal["digits", "dogs"] = Field(description="digits (from scikit-learn) or dogs (drawn by mlmeta)")
    size: int | None = Field(None, ge=8, le=1024, description="edge in pixels")
    n_per_label: int | None = Field(None, ge=1, le=10_000, description="pictures a label")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share put aside for the test")


Data: TypeAlias = Annotated[FolderData | ManifestData | TorchvisionData | SampleData, Field(discriminator="source")]


class TestSection(_Commands):
    """How an attempt is tested right after its training."""

    __test__ = False  # not a test case, whatever its name says to pytest

    limit: int = Field(0, ge=0, description="pictures drawn from the test part; 0 takes all")
    ids: list[str] = Field(
        default_factory=list, description="the pictures to test on, by id; empty takes the test part"
    )


def _check_labels(labels: list[str]) -> list[str]:
    if len(labels) == 1:
        raise ValueError("there must be at least two labels to tell apart (or none: every label of the data)")
    repeated = sorted({label for label in labels if labels.count(label) > 1}) if len(labels) < 10_000 else []
    if repeated or len(set(labels)) != len(labels):
        raise ValueError(f"a label may stand once only; repeated: {', '.join(repeated[:5])}")
    if any(not label.strip() or _CONTROL.search(label) or len(label) > 500 for label in labels):
        raise ValueError("a label must be a line of 1 to 500 characters")
    return labels


def _check_model_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name != name.strip() or len(name) > 200:
        raise ValueError(
            "must be a safe file name of 1 to 200 characters: letters, digits, spaces and . , _ - + = @ ( ), "
            "the first a letter or digit"
        )
    return name


Labels: TypeAlias = Annotated[list[str], Field(max_length=100_000)]
ModelName: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]


class TrainCommands(_Commands):
    """How to train one attempt, and on what.

    `document` gives back what was read, unchanged; attributes hold it with all defaults filled in.
    """

    schema_url: str | None = Field(None, alias="$schema", description="the JSON Schema, for editors; not used")
    model_name: ModelName = Field(description="the attempt's name; its newest attempt is found by it")
    label_names: Labels = Field(
        default_factory=list,
        description="the labels in order; query operators such as imagesize:500x500 may follow",
    )
    data: Data = Field(default_factory=lambda: FolderData(), description="where the pictures come from")
    image_ops: ImageOps = Field(default_factory=list, description="methods of PIL.Image.Image, applied in order")
    transform: Transform = Field(
        default_factory=lambda: {"ToTensor": True},
        description="torchvision transforms, a dict or an ordered list",
    )
    target_transform: Transform | None = Field(None, description="transforms of the one-hot column of a label")
    model: Model = Field(description="torch.nn layers in order, or the name of a torchvision builder")
    criterion: Criterion = Field(
        default_factory=lambda: {"name": "CrossEntropyLoss"},
        description="a loss of torch.nn with its arguments",
    )
    optimizer: Optimizer = Field(
        default_factory=lambda: {"name": "Adam", "lr": 0.001},
        description="of torch.optim, with its arguments",
    )
    scheduler: Scheduler | None = Field(
        default_factory=lambda: {"name": "ReduceLROnPlateau"},
        description="of torch.optim.lr_scheduler; ReduceLROnPlateau watches the training loss; null for none",
    )
    batch_size: int = Field(32, ge=1, le=MAX_BATCH, description="pictures a batch")
    n_epoch: int = Field(10, ge=1, le=MAX_EPOCHS, description="full passes over the training pictures")
    n_labels: int = Field(0, ge=0, description="number of labels; 0 counts label_names")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="of weights, order of pictures and random transforms")
    validation: float = Field(0.1, ge=0, le=0.9, description="share of the training pictures kept for validation")
    keep: Literal["best", "last"] = Field(
        "best", description="the epoch whose weights are kept: least val_loss, or last"
    )
    initial_weights: None = Field(None, description="only null in this version: every attempt starts from scratch")
    stop: None = Field(None, description="only null in this version: every attempt runs all its epochs")
    test: TestSection = Field(default_factory=lambda: TestSection(), description="the test that follows the training")

    _labels = field_validator("label_names")(_check_labels)
    _name = field_validator("model_name")(_check_model_name)

    @model_validator(mode="after")
    def _count_labels(self) -> TrainCommands:
        _check_count(self.n_labels, self.label_names)
        return self

    def document(self) -> dict[str, Any]:
        """Return the document that these commands were read from."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON of the document, without its ``$schema``."""
        return digest_document(self.document())


class TestCommands(_Commands):
    """How to test an attempt; what is left out is as the attempt's train commands say."""

    __test__ = False  # not a test case, whatever its name says to pytest

    schema_url: str | None = Field(None, alias="$schema", description="the JSON Schema, for editors; not used")
    model_name: ModelName | None = Field(None, description="the newest attempt of this name is tested")
    run_id: str | None = Field(None, pattern=r"^[0-9a-zA-Z_-]{1,64}$", description="the MLflow run to test")
    label_names: Labels | None = Field(None, description="labels to test on, of those that the attempt knows")
    data: Data | None = Field(None, description="other pictures than the attempt's own")
    image_ops: ImageOps | None = Field(None, description="as in train commands")
    transform: Transform | None = Field(None, description="as in train commands")
    target_transform: Transform | None = Field(None, description="as in train commands")
    model: Model | None = Field(None, description="as in train commands; must fit the attempt's weights")
    criterion: Criterion | None = Field(None, description="as in train commands")
    batch_size: int | None = Field(None, ge=1, le=MAX_BATCH, description="pictures a batch")
    n_labels: int = Field(0, ge=0, description="number of labels; 0 counts label_names")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="of the draw of `limit` pictures")
    limit: int = Field(0, ge=0, description="pictures drawn without replacement from the test part; 0 takes all")
    ids: list[str] = Field(default_factory=list, description="the pictures to test on, by id")

    @field_validator("label_names")
    @classmethod
    def _labels(cls, labels: list[str] | None) -> list[str] | None:
        return labels if labels is None else _check_labels(labels)

    @model_validator(mode="after")
    def _names_one_attempt(self) -> TestCommands:
        if (self.model_name is None) == (self.run_id is None):
            raise ValueError("needs either a model_name or a run_id, to say which attempt to test")
        _check_count(self.n_labels, self.label_names or [])
        return self

    def document(self) -> dict[str, Any]:
        """Return the document that these commands were read from."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Attempt(BaseModel):
    """The Attempt document: what was commanded and what came of it; unknown keys are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    id: int | str | None = None
    name: str
    training_commands: TrainCommands
    training_losses: list[float | None] = Field(default_factory=list)
    n_epoch: int = Field(0, ge=0)
    testing_commands: TestCommands | None = None
    accuracy: float | None = None
    status: Status = Status.INCOMPLETE
    limit: int = 0


def _check_count(n_labels: int, labels: list[str]) -> None:
    if n_labels and labels and n_labels != len(labels):
        raise PydanticCustomError(
            "fault",
            "{message}",
            {"message": f"n_labels says {n_labels}, label_names has {len(labels)}: make them equal, or n_labels 0",
             "came": "", "nearest": ""},
        )  # fmt: skip


def digest_document(document: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of a document's canonical JSON: sorted keys, no spaces, without ``$schema``."""
    kept = {key: value for key, value in document.items() if key != "$schema"}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
