"""The commands: the JSON documents that say how to train and how to test one attempt.

`TrainCommands` and `TestCommands` hold what a document says, field by field under the document's own names;
`Attempt` is the exchange document that holds both and what came of them. Every fault of a document is reported
at once, see `mlmeta.commands.parsing`. Nothing here needs torch or MLflow.

The rules by which a training may stop early are named here; deciding by them is the work of
`mlmeta.training.early_stopping`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from mlmeta.commands import search_space, validation
from mlmeta.commands.json_schema import SPACE_SCHEMA, named_schema
from mlmeta.errors import Fault, nearest_name, shorten
from mlmeta.status import Status

_NAME = re.compile(r"[^\W_][\w .,+=@()-]*")
MAX_EPOCHS = 1_000_000
MAX_BATCH = 1_000_000
MAX_LABELS = 100_000
# Pictures in one test.
MAX_PICTURES = 10**9
# More faults in one field are not looked for.
MAX_FAULTS = 100
# A file's name may have 255 bytes; the rest is for suffixes.
MAX_NAME_BYTES = 200
After: TypeAlias = Annotated[float, Field(ge=0, le=1, description="nothing stops before this share of n_epoch")]
# The operators of searches for pictures; what merely looks like one (``damage level:2``) belongs to the label.
_OPERATOR = re.compile(
    r"\s+-?(?:imagesize|site|filetype|ext|intitle|allintitle|inurl|allinurl|intext|allintext|inanchor|related|source"
    r"|cache|define|size|color|type|(?:before|after)(?=:\d{4})):\S+",
    re.IGNORECASE,
)


def _checked(rule: Callable[[Any], Iterator[validation.Located]]) -> BeforeValidator:
    """Make a validator that raises every fault that a rule finds; the rule sees plain JSON only."""

    def validate(value: Any) -> Any:
        _raise_located(list(validation.check_plain(value)) or list(islice(rule(value), MAX_FAULTS)), value)
        return value

    return BeforeValidator(validate)


def _raise_located(located: Sequence[validation.Located], came: Any) -> None:
    """Raise the faults, if there are any, in the way in which pydantic joins them to those of other fields."""
    if located:
        errors = [
            InitErrorDetails(type=PydanticCustomError("fault", "{message}", vars(fault)), loc=location, input=came)
            for location, fault in located
        ]
        raise ValidationError.from_exception_data("commands", errors)


def _check_strings(strings: object) -> Iterator[validation.Located]:
    """Check a list of strings: of labels, of picture ids."""
    if not isinstance(strings, list):
        yield (), Fault("", "must be a list of strings", came=shorten(strings))
        return
    for index, item in enumerate(strings):
        if not isinstance(item, str):
            yield (index,), Fault("", "must be a string", came=shorten(item))


def _check_labels(labels: object, *, least: int = 2) -> Iterator[validation.Located]:
    yield from _check_strings(labels)
    if not isinstance(labels, list):
        return
    if len(labels) == 1 < least:
        message = "there must be at least two labels to tell apart (or none: every label of the data)"
        yield (), Fault("", message, came=shorten(labels))
    if len(labels) > MAX_LABELS:
        yield (), Fault("", f"there may be at most {MAX_LABELS:,} labels", came=f"{len(labels):,}")
    strings = {index: label for index, label in enumerate(labels) if isinstance(label, str)}
    for label, count in Counter(strings.values()).items():
        if count > 1:
            yield (), Fault("", f"a label may stand once only; this one stands {count} times", came=shorten(label))
    for index, label in strings.items():
        if not label.strip() or validation.CONTROL.search(label) or len(label) > 500:
            yield (index,), Fault("", "a label must be one line of 1 to 500 characters", came=shorten(label))


def _must(fits: Callable[[str], object], message: str) -> AfterValidator:
    """Make a validator that refuses the strings which do not fit."""

    def validate(text: str) -> str:
        if not fits(text):
            raise ValueError(message)
        return text

    return AfterValidator(validate)


def is_model_name(name: str) -> bool:
    """Return whether an attempt that is trained may have a name; `NAME_RULE` says in words which may."""
    return bool(_NAME.fullmatch(name)) and name == name.strip() and len(name.encode()) <= MAX_NAME_BYTES


def _is_path(path: str) -> bool:
    return bool(path.strip()) and not validation.CONTROL.search(path) and len(path) <= 4_000


_UNICODE = _must(validation.can_be_written, "holds text that is not Unicode")
NAME_RULE = (
    f"must be a safe file name of 1 to {MAX_NAME_BYTES} bytes: letters, digits, spaces and . , _ - + = @ ( ), "
    "the first a letter or digit, the last no space"
)
_MODEL_NAME = _must(is_model_name, NAME_RULE)
_INITIAL_WEIGHTS = _must(is_model_name, "must be null, auto, or the name or run id of an attempt")
_PATH = _must(_is_path, "must be a path: one line of 1 to 4,000 characters")
_RUN_ID = _must(
    re.compile(r"[0-9a-zA-Z_-]{1,64}").fullmatch, "must be the id of a run: 1 to 64 letters, digits, - and _"
)
_CLASS_NAME = _must(
    re.compile(r"[A-Z][A-Za-z0-9]{0,99}").fullmatch,
    "must be the name of a class of torchvision.datasets, such as OxfordIIITPet",
)
_FILE_NAME_SCHEMA = Field(json_schema_extra={"minLength": 1, "maxLength": MAX_NAME_BYTES})
_NOT_EMPTY_SCHEMA = Field(json_schema_extra={"minLength": 1})

Named: TypeAlias = dict[str, Any]
Model: TypeAlias = Annotated[Named, _checked(validation.check_model), named_schema("model")]
Criterion: TypeAlias = Annotated[
    Named, _checked(partial(validation.check_named, "criterion")), named_schema("criterion")
]
Optimizer: TypeAlias = Annotated[Named, _checked(validation.check_optimizer), named_schema("optimizer")]
Scheduler: TypeAlias = Annotated[
    Named, _checked(partial(validation.check_named, "scheduler")), named_schema("scheduler")
]
ImageOps: TypeAlias = Annotated[list[Named], _checked(validation.check_image_ops), named_schema("image_op")]
Transform: TypeAlias = Annotated[Any, _checked(validation.check_transform), named_schema("transform")]
Space: TypeAlias = Annotated[Named, _checked(search_space.check_space), SPACE_SCHEMA]
Labels: TypeAlias = Annotated[
    list[str], _checked(_check_labels), Field(json_schema_extra={"uniqueItems": True, "maxItems": MAX_LABELS})
]
TestedLabels: TypeAlias = Annotated[
    list[str],
    _checked(partial(_check_labels, least=1)),
    Field(json_schema_extra={"uniqueItems": True, "maxItems": MAX_LABELS}),
]
PictureIds: TypeAlias = Annotated[list[str], _checked(_check_strings)]
ModelName: TypeAlias = Annotated[str, _MODEL_NAME, _FILE_NAME_SCHEMA]
InitialWeights: TypeAlias = Annotated[str, _INITIAL_WEIGHTS, _FILE_NAME_SCHEMA]
Text: TypeAlias = Annotated[str, _UNICODE]
FilePath: TypeAlias = Annotated[str, _UNICODE, _PATH, _NOT_EMPTY_SCHEMA]
RunId: TypeAlias = Annotated[str, _RUN_ID, _NOT_EMPTY_SCHEMA]
ClassName: TypeAlias = Annotated[str, _CLASS_NAME, _NOT_EMPTY_SCHEMA]


class _Commands(BaseModel):
    """What all parts of a document share: unknown keys and values of another type are faults."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)

    def document(self) -> dict[str, Any]:
        """Return the JSON that this was read from."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return 0 < len(text) <= 200


Group: TypeAlias = Annotated[
    Text, _must(_is_pattern, "must be a column's name or a regular expression of 1 to 200 characters")
]


class FolderData(_Commands):
    """Pictures in a folder: ``<path>/<label>/…`` or ``<path>/train|test/<label>/…``."""

    # The default is for programs: a document has to say which source it means.
    model_config = ConfigDict(json_schema_extra={"required": ["source"]})

    source: Literal["folder"] = Field("folder", description="pictures in one folder for each label")
    path: FilePath = Field("data", description="the folder, relative to the commands file")
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share put aside for the test where no part is named test"
    )
    group: Group | None = Field(
        None,
        description="a regular expression on a file's name: pictures whose group (or match) is equal stay in one part",
    )


class ManifestData(_Commands):
    """Pictures listed in a CSV or Parquet table with the columns path, label and, if wanted, split and id."""

    source: Literal["manifest"] = Field(
        description="pictures listed in a table with the columns path, label and, if wanted, split and id"
    )
    path: FilePath = Field(description="the CSV or Parquet file, relative to the commands file")
    columns: dict[Literal["path", "label", "split", "id"], Text | None] | None = Field(
        None, description='the columns\' names where they are others, such as {"label": "class"}; null: none is read'
    )
    group: Group | None = Field(
        None, description="a column, or a regular expression on a file's name: equal groups stay in one part"
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share put aside for the test where no split is named test"
    )


class TorchvisionData(_Commands):
    """A classifying data set of ``torchvision.datasets``."""

    source: Literal["torchvision"] = Field(description="a data set of torchvision.datasets")
    name: ClassName = Field(description="its class, such as OxfordIIITPet")
    path: FilePath = Field("data", description="where its files are, or are put")
    download: bool = Field(False, description="fetch the files where they are missing")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share put aside where the data set has no test part")


class SampleData(_Commands):
    """A picture set that mlmeta brings: no files, no network."""

    source: Literal["sample"] = Field(description="built in: real handwritten digits, or drawn dogs")
    name: Literal["digits", "dogs"] = Field(description="digits (from scikit-learn) or dogs (drawn by mlmeta)")
    size: int | None = Field(None, ge=8, le=1024, description="edge in pixels; null: 8 for digits, 128 for dogs")
    n_per_label: int | None = Field(
        None, ge=1, le=10_000, description="pictures of each label; null: all digits, 60 dogs"
    )
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share put aside for the test")


# pydantic writes out a source that it does not know: only what is plain JSON may come that far.
Data: TypeAlias = Annotated[
    FolderData | ManifestData | TorchvisionData | SampleData,
    Field(discriminator="source"),
    _checked(lambda _: iter(())),
]


class CurveRule(_Commands):
    """Stops a training that will hardly beat the best past attempt on its task, as past learning curves go."""

    rule: Literal["curve"] = Field(description="stop where the attempt is unlikely to become the best on its task")
    after: After = 0.25
    probability: float = Field(0.05, ge=0, le=1, description="stop below this chance to become the best")


class MedianRule(_Commands):
    """Stops a training that is below the median of past attempts on its task (Golovin et al., Google Vizier, 2017)."""

    rule: Literal["median"] = Field(description="stop below the median of the past attempts on the task at that epoch")
    after: After = 0.25
    min_attempts: int = Field(5, ge=1, le=1_000_000, description="with fewer past attempts nothing stops")


class TopFractionRule(_Commands):
    """Stops a training that is not among the best past attempts on its task."""

    rule: Literal["top_fraction"] = Field(
        description="stop what is not among the best past attempts on the task at that epoch"
    )
    after: After = 0.25
    fraction: float = Field(0.2, gt=0, le=1, description="the share that counts as the best")
    min_attempts: int = Field(5, ge=1, le=1_000_000, description="with fewer past attempts nothing stops")


StopRule: TypeAlias = MedianRule | TopFractionRule | CurveRule
Stop: TypeAlias = Annotated[StopRule, Field(discriminator="rule"), _checked(lambda _: iter(()))]


class TestSection(_Commands):
    """How an attempt is tested right after its training."""

    __test__ = False  # not a test case, whatever its name says to pytest

    limit: int = Field(0, ge=0, le=MAX_PICTURES, description="how many pictures are drawn from the test part; 0: all")
    ids: PictureIds = Field(
        default_factory=list, description="the ids of the pictures to test on; empty: the test part"
    )


def _check_count(n_labels: int, info: ValidationInfo) -> int:
    labels = info.data.get("label_names") or []
    if n_labels and labels and n_labels != len(labels):
        raise ValueError(f"label_names has {len(labels)} labels: make the two equal, or n_labels 0")
    return n_labels


def _check_space_fits(space: Named | None, info: ValidationInfo) -> Named | None:
    if space:
        training = {key: info.data[key] for key in search_space.TRAINING_KEYS if key in info.data}
        _raise_located(list(islice(search_space.check_space_fits(space, training), MAX_FAULTS)), space)
    return space


def _check_stop(stop: StopRule | None, info: ValidationInfo) -> StopRule | None:
    if stop is not None and info.data.get("validation") == 0:
        raise ValueError("goes by validation pictures: make validation more than 0, or stop null")
    return stop


class TrainCommands(_Commands):
    """How to train one attempt, and on what.

    `document` gives back what was read, unchanged; attributes hold it with all defaults filled in.
    """

    schema_url: Text | None = Field(
        None, alias="$schema", description="the JSON Schema, for your editor; mlmeta does not read it"
    )
    model_name: ModelName = Field(description="the attempt's name; by name the newest attempt is meant")
    label_names: Labels = Field(
        default_factory=list,
        description="the labels in their order; empty: every label of the data; imagesize:500x500 may follow a label",
    )
    data: Data = Field(default_factory=lambda: FolderData(), description="where the pictures come from")
    image_ops: ImageOps = Field(default_factory=list, description="methods of Pillow's Image, in their order")
    transform: Transform = Field(
        default_factory=lambda: {"ToTensor": True},
        description="transforms of torchvision: an object, or a list that runs in its order",
    )
    target_transform: Transform | None = Field(None, description="transforms of the one-hot column of a label")
    model: Model = Field(description="layers of torch.nn in their order, or the name of a model of torchvision")
    criterion: Criterion = Field(
        default_factory=lambda: {"name": "CrossEntropyLoss"},
        description="the loss: a class of torch.nn with its arguments",
    )
    optimizer: Optimizer = Field(
        default_factory=lambda: {"name": "Adam", "lr": 0.001},
        description="a class of torch.optim with its arguments",
    )
    scheduler: Scheduler | None = Field(
        default_factory=lambda: {"name": "ReduceLROnPlateau"},
        description="a class of torch.optim.lr_scheduler; ReduceLROnPlateau watches the training loss; null: none",
    )
    batch_size: int = Field(32, ge=1, le=MAX_BATCH, description="pictures in a batch")
    n_epoch: int = Field(10, ge=1, le=MAX_EPOCHS, description="full passes over the training pictures")
    n_labels: int = Field(0, ge=0, le=MAX_LABELS, description="how many labels; 0: as many as there are")
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="decides the first weights, the order of the pictures and the random transforms",
    )
    validation: float = Field(0.1, ge=0, le=0.9, description="share of the training pictures kept for validation")
    keep: Literal["best", "last"] = Field(
        "best",
        description="whose weights are kept: of the epoch with the least val_loss, or of the last; not given: of the "
        "best where validation has 20 pictures and 2 a label, else of the last",
    )
    initial_weights: InitialWeights | None = Field(
        None, description="null: from scratch; auto: from the past attempt that helps; or an attempt's name or run id"
    )
    stop: Stop | None = Field(
        None, description="a rule that ends the training early, by past attempts; null: all epochs"
    )
    space: Space | None = Field(
        None, description="what recommend and tune may try: for the path of a value a range or choices; all else stays"
    )
    test: TestSection = Field(default_factory=lambda: TestSection(), description="the test that follows the training")

    _count = field_validator("n_labels")(_check_count)
    _space = field_validator("space")(_check_space_fits)
    _validated = field_validator("stop")(_check_stop)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON of the document, without its ``$schema``."""
        return digest_document(self.document())


class TestCommands(_Commands):
    """How to test an attempt; what is left out is as the attempt's train commands say."""

    __test__ = False  # not a test case, whatever its name says to pytest

    schema_url: Text | None = Field(
        None, alias="$schema", description="the JSON Schema, for your editor; mlmeta does not read it"
    )
    model_name: ModelName | None = Field(None, description="the newest attempt of this name is tested")
    run_id: RunId | None = Field(None, validate_default=True, description="the MLflow run to test")
    label_names: TestedLabels | None = Field(None, description="the labels to test on, among those of the attempt")
    data: Data | None = Field(None, description="other pictures")
    image_ops: ImageOps | None = Field(None, description="as in train commands")
    transform: Transform | None = Field(None, description="as in train commands")
    target_transform: Transform | None = Field(None, description="as in train commands")
    model: Model | None = Field(None, description="as in train commands; must fit the attempt's weights")
    criterion: Criterion | None = Field(None, description="as in train commands")
    batch_size: int | None = Field(None, ge=1, le=MAX_BATCH, description="pictures in a batch")
    n_labels: int = Field(0, ge=0, le=MAX_LABELS, description="how many labels; 0: as many as there are")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="decides which `limit` pictures are drawn")
    limit: int = Field(0, ge=0, le=MAX_PICTURES, description="how many pictures are drawn from the test part; 0: all")
    ids: PictureIds = Field(
        default_factory=list, description="the ids of the pictures to test on; empty: the test part"
    )

    _count = field_validator("n_labels")(_check_count)

    @field_validator("run_id")
    @classmethod
    def _names_one_attempt(cls, run_id: str | None, info: ValidationInfo) -> str | None:
        if "model_name" in info.data and (info.data["model_name"] is None) == (run_id is None):
            raise ValueError("either model_name or run_id must say which attempt to test, and not both")
        return run_id


def _allow_empty(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"type": "object", "maxProperties": 0})


_MAY_BE_EMPTY = (
    BeforeValidator(lambda value: None if value == {} else value),
    Field(json_schema_extra=_allow_empty),
)


class Attempt(_Commands):
    """The Attempt document: what was commanded and what came of it; unknown keys are kept.

    Without commands, or with ``{}`` in their place, it describes an attempt that nobody can train yet.
    """

    model_config = ConfigDict(extra="allow")

    id: int | Text | None = None
    name: Text
    training_commands: Annotated[TrainCommands | None, *_MAY_BE_EMPTY] = None
    training_losses: list[float | None] = Field(default_factory=list)
    n_epoch: int = Field(0, ge=0, le=MAX_EPOCHS)
    testing_commands: Annotated[TestCommands | None, *_MAY_BE_EMPTY] = None
    accuracy: float | None = None
    status: Status = Field(Status.INCOMPLETE, strict=False)
    limit: int = Field(0, ge=0, le=MAX_PICTURES)

    @model_validator(mode="after")
    def _check_commands_stand_in_their_place(self) -> Self:
        for key in self.model_extra or {} if "training_commands" not in self.model_fields_set else ():
            if key in ("model", "model_name", "optimizer") or nearest_name(key, ["training_commands"]):
                fault = Fault("", "is no key of an Attempt document without training_commands; it may belong there")
                _raise_located([((key,), fault)], None)
        return self


def digest_document(document: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of a document's canonical JSON: sorted keys, no spaces, without ``$schema``."""
    kept = {key: value for key, value in document.items() if key != "$schema"}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def strip_operators(label: str) -> str:
    """Return a label without its query operators: ``Boston Terrier imagesize:500x500`` → ``Boston Terrier``."""
    return _OPERATOR.sub("", label).strip() or label
