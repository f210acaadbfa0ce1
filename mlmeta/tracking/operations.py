"""What is written to a run, as data: one operation can wait in a queue, be joined with the next, or lie in a file.

`send` does one in MLflow; errors that may pass are told from those that will not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlmeta.errors import MlmetaError
from mlmeta.tracking.attempts import write_document, write_note

# What MLflow takes in one request: metrics, params and tags together, params or tags, and characters (of 10^6).
MAX_ENTITIES = 1000
MAX_PARAMS_OR_TAGS = 100
MAX_CHARACTERS = 500_000

_ARTIFACT_KINDS = {"text", "files", "document"}
# Who may not write now may be let in again later, after a new login.
_MAY_PASS = {401, 403, 408, 425, 429}
_FAULTS_OF_OURS = (TypeError, ValueError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True, eq=False)
class Operation:
    """One thing to write to one run.

    Attributes:
        kind: ``batch`` (metrics, params, tags), ``status`` (MLflow's own), ``dataset``, ``text`` (an artifact),
            ``files`` (a folder of artifacts), or what is made from the run when it is sent: ``note``, ``document``.
        run_id: The run.
        content: As JSON; what it holds depends on the kind.
    """

    kind: str
    run_id: str
    content: Mapping[str, Any]

    @property
    def lane(self) -> str:
        """Which store takes it, in order: ``artifacts`` may be away while ``tracking`` is not."""
        return "artifacts" if self.kind in _ARTIFACT_KINDS else "tracking"

    @property
    def reads(self) -> bool:
        """Whether it is made from all that was written before."""
        return self.kind == "document"

    def to_line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps({"kind": self.kind, "run_id": self.run_id, "content": self.content})


def parse_operation(line: str) -> Operation:
    """Return the operation of a line that `Operation.to_line` gave.

    Raises:
        ValueError: If it is no such line.
    """
    try:
        document = json.loads(line)
        operation = Operation(str(document["kind"]), str(document["run_id"]), dict(document["content"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no operation: {line[:80]}") from error
    if operation.kind not in _SENDERS:
        raise ValueError(f"no operation: {line[:80]}")
    return operation


def make_batches(
    run_id: str,
    *,
    metrics: Sequence[tuple[str, float, int, int]] = (),
    params: Sequence[tuple[str, str]] = (),
    tags: Sequence[tuple[str, str]] = (),
) -> list[Operation]:
    """Return operations for any number of metrics, params and tags, each as much as one request takes.

    Params and tags are key and value; metrics are key, value, time in ms since 1970, and step.
    """
    pieces = [
        *({"metrics": piece} for piece in _cut(metrics, MAX_ENTITIES)),
        *({"params": piece} for piece in _cut(params, MAX_PARAMS_OR_TAGS)),
        *({"tags": piece} for piece in _cut(tags, MAX_PARAMS_OR_TAGS)),
    ]
    return [join_operations(part) for part in take_joinable([Operation("batch", run_id, p) for p in pieces])]


def _cut(items: Sequence[Any], size: int) -> Iterator[list[list[Any]]]:
    for start in range(0, len(items), size):
        yield [list(item) for item in items[start : start + size]]


def join_operations(operations: Sequence[Operation]) -> Operation:
    """Return one operation that does what several batches of one run do; a tag's last value stands."""
    if len(operations) == 1:
        return operations[0]
    tags = {key: value for operation in operations for key, value in operation.content.get("tags", ())}
    content = {
        "metrics": [item for operation in operations for item in operation.content.get("metrics", ())],
        "params": [item for operation in operations for item in operation.content.get("params", ())],
        "tags": [list(item) for item in tags.items()],
    }
    return Operation("batch", operations[0].run_id, content)


def take_joinable(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Yield the operations in groups that `join_operations` may make one request of."""
    group: list[Operation] = []
    total: Counter[str] = Counter()
    for operation in operations:
        size = _measure(operation)
        if group and not (_alike(group[-1], operation) and _fits(total + size)):
            yield group
            group, total = [], Counter()
        group.append(operation)
        total += size
    if group:
        yield group


def _alike(one: Operation, other: Operation) -> bool:
    return one.kind == other.kind == "batch" and one.run_id == other.run_id


def _measure(operation: Operation) -> Counter[str]:
    """Return how much of a request an operation takes."""
    metrics, params, tags = (operation.content.get(key, ()) for key in ("metrics", "params", "tags"))
    texts = sum(len(key) + len(value) for key, value in [*params, *tags])
    return Counter(metrics=len(metrics), params=len(params), tags=len(tags), characters=texts + 100 * len(metrics))


def _fits(size: Counter[str]) -> bool:
    return (
        size["metrics"] + size["params"] + size["tags"] <= MAX_ENTITIES
        and max(size["params"], size["tags"]) <= MAX_PARAMS_OR_TAGS
        and size["characters"] <= MAX_CHARACTERS
    )


def send_operation(client: MlflowClient, operation: Operation, *, folder: Path) -> None:
    """Do one operation; doing it again changes nothing. Its files lie in `folder`, if their paths are relative.

    Raises:
        Exception: What MLflow and the libraries under it raise; see `may_pass`.
    """
    _SENDERS[operation.kind](client, operation, folder)


def _send_batch(client: MlflowClient, operation: Operation, folder: Path) -> None:
    content = operation.content
    client.log_batch(
        operation.run_id,
        metrics=[Metric(key, value, time_ms, step) for key, value, time_ms, step in content.get("metrics", ())],
        params=[Param(key, value) for key, value in content.get("params", ())],
        tags=[RunTag(key, value) for key, value in content.get("tags", ())],
    )


def _send_status(client: MlflowClient, operation: Operation, folder: Path) -> None:
    # The end is when MLflow hears of it: whoever reads on from the last end must not miss this run.
    client.set_terminated(operation.run_id, operation.content["status"])


def _send_dataset(client: MlflowClient, operation: Operation, folder: Path) -> None:
    content: Mapping[str, Any] = operation.content
    # MLflow takes 36 characters of a digest.
    dataset = Dataset(
        name=content["name"],
        digest=content["digest"][:36],
        source_type="mlmeta",
        source=json.dumps({"pictures": content["source"]}),
        profile=json.dumps({"sha256": content["digest"]}),
    )
    tag = InputTag("mlflow.data.context", content["context"])
    client.log_inputs(operation.run_id, [DatasetInput(dataset, [tag])])


def _send_text(client: MlflowClient, operation: Operation, folder: Path) -> None:
    client.log_text(operation.run_id, operation.content["text"], operation.content["path"])
    if tag := operation.content.get("frees_tag"):
        try:
            client.delete_tag(operation.run_id, tag)
        except MlflowException as error:
            if may_pass(error):
                raise


def _send_files(client: MlflowClient, operation: Operation, folder: Path) -> None:
    source = folder / operation.content["folder"]
    if not source.is_dir():
        raise ValueError(f"the files to upload are gone: {source}")
    client.log_artifacts(operation.run_id, str(source))


_SENDERS: dict[str, Callable[[MlflowClient, Operation, Path], None]] = {
    "batch": _send_batch,
    "status": _send_status,
    "dataset": _send_dataset,
    "text": _send_text,
    "files": _send_files,
    "document": lambda client, operation, _: write_document(client, operation.run_id),
    "note": lambda client, operation, _: write_note(client, operation.run_id),
}


def may_pass(error: BaseException) -> bool:
    """Return whether an error comes from outside (network, server, disk, login) and may be gone later."""
    if isinstance(error, MlmetaError):
        cause = error.__cause__
        return cause is not None and not isinstance(cause, FileNotFoundError) and may_pass(cause)
    if isinstance(error, MlflowException):
        return _code_may_pass(error.get_http_status_code())
    answer = getattr(getattr(error, "response", None), "status_code", None)  # of a requests.HTTPError
    if isinstance(answer, int):
        return _code_may_pass(answer)
    # Libraries of artifact stores have errors of their own; what they raise is taken to be outside.
    return not isinstance(error, _FAULTS_OF_OURS)


def _code_may_pass(code: int) -> bool:
    return code >= 500 or code in _MAY_PASS
