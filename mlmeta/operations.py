"""What is written to a run, as data: one operation can wait in a queue, be joined with the next, or lie in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What MLflow takes in one request: metrics, params and tags together, params or tags, and characters (of 10^6).
MAX_ENTITIES = 1000
MAX_PARAMS_OR_TAGS = 100
MAX_CHARACTERS = 500_000

# Operations of one lane are sent in their order. The artifact store may be away while the tracking store is not.
LANES = {
    "batch": "tracking",
    "status": "tracking",
    "dataset": "tracking",
    "note": "tracking",
    "text": "artifacts",
    "files": "artifacts",
    "document": "artifacts",
}


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
        """Which store takes it: ``tracking`` or ``artifacts``."""
        return LANES[self.kind]

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
    if operation.kind not in LANES:
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

    Args:
        run_id: The run.
        metrics: Key, value, time in ms since 1970, step.
        params: Key and value.
        tags: Key and value.
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
    total = _Size()
    for operation in operations:
        size = _measure(operation)
        if group and not (_alike(group[-1], operation) and (total + size).fits()):
            yield group
            group, total = [], _Size()
        group.append(operation)
        total = total + size
    if group:
        yield group


def _alike(one: Operation, other: Operation) -> bool:
    return one.kind == other.kind == "batch" and one.run_id == other.run_id


@dataclass(frozen=True)
class _Size:
    """How much a request holds."""

    metrics: int = 0
    params: int = 0
    tags: int = 0
    characters: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(
            self.metrics + other.metrics,
            self.params + other.params,
            self.tags + other.tags,
            self.characters + other.characters,
        )

    def fits(self) -> bool:
        return (
            self.metrics + self.params + self.tags <= MAX_ENTITIES
            and max(self.params, self.tags) <= MAX_PARAMS_OR_TAGS
            and self.characters <= MAX_CHARACTERS
        )


def _measure(operation: Operation) -> _Size:
    if operation.kind != "batch":
        return _Size()
    metrics, params, tags = (operation.content.get(key, ()) for key in ("metrics", "params", "tags"))
    texts = sum(len(key) + len(value) for key, value in [*params, *tags])
    return _Size(len(metrics), len(params), len(tags), texts + 100 * len(metrics))
