"""The queue in front of MLflow: order, joining, trying again, putting aside, giving back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmeta.tracking.operations import Operation, join_operations, make_batches, parse_operation, take_joinable
from mlmeta.tracking.outbox import Outbox


class AwayError(Exception):
    """The store does not answer."""


class Store:
    """Takes operations down; a gate holds it up, `away` names the lanes that do not answer."""

    def __init__(self) -> None:
        self.taken: list[Operation] = []
        self.away: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def send(self, operation: Operation) -> None:
        assert self.gate.wait(20)
        if operation.lane in self.away:
            raise AwayError(f"no {operation.lane}")
        if any(key == "bad" for key, *_ in operation.content.get("metrics", ())):
            raise ValueError("bad metric")
        self.taken.append(operation)

    @property
    def metrics(self) -> list[str]:
        return [item[0] for operation in self.taken for item in operation.content.get("metrics", ())]

    @property
    def kinds(self) -> list[str]:
        return [operation.kind for operation in self.taken]


@pytest.fixture
def stored() -> Store:
    return Store()


@pytest.fixture
def outbox(stored: Store) -> Outbox:
    return Outbox(stored.send, is_outside=lambda error: isinstance(error, AwayError))


def metric(key: str, step: int = 0) -> Operation:
    return Operation("batch", "r", {"metrics": [[key, 1.0, 0, step]]})


def text(path: str) -> Operation:
    return Operation("text", "r", {"path": path, "text": ""})


def test_operations_arrive_in_their_order(stored: Store, outbox: Outbox) -> None:
    queued = [metric("a"), text("x"), metric("b"), Operation("status", "r", {}), metric("c"), text("y")]
    outbox.put(queued)
    assert outbox.flush(limit_s=5)
    assert stored.taken == queued


def test_metrics_that_wait_are_sent_in_one_request(stored: Store, outbox: Outbox) -> None:
    stored.gate.clear()
    for step in range(300):
        outbox.put([metric("loss", step)])
    stored.gate.set()
    assert outbox.flush(limit_s=5)
    assert len(stored.taken) <= 2  # the first may have been under way
    assert [item[3] for operation in stored.taken for item in operation.content["metrics"]] == list(range(300))


def test_quick_metrics_wait_for_each_other_but_not_at_the_end(stored: Store) -> None:
    outbox = Outbox(stored.send, is_outside=lambda error: False, linger_s=3600)
    outbox.put([metric("first")])
    assert outbox.flush(limit_s=5)
    outbox.put([metric("second")])
    outbox.put([metric("third")])
    assert stored.metrics == ["first"]
    assert outbox.flush(limit_s=5)
    assert stored.metrics == ["first", "second", "third"]
    assert len(stored.taken) == 2


def test_what_fails_for_an_outside_reason_is_sent_later(stored: Store, outbox: Outbox) -> None:
    stored.away = {"tracking"}
    outbox.put([metric("a"), metric("b")])
    assert not outbox.flush(limit_s=0)
    assert outbox.error == "no tracking"
    stored.away = set()
    assert outbox.flush(limit_s=5)
    assert stored.metrics == ["a", "b"]


def test_what_cannot_be_sent_is_given_back(stored: Store, outbox: Outbox) -> None:
    stored.away = {"tracking", "artifacts"}
    queued = [metric("a"), text("x"), metric("b")]
    outbox.put(queued)
    assert not outbox.flush(limit_s=0)
    assert outbox.stop() == queued
    assert stored.taken == []


def test_metrics_do_not_wait_for_an_artifact_store_that_is_away(stored: Store, outbox: Outbox) -> None:
    stored.away = {"artifacts"}
    waiting = [text("x"), text("y"), Operation("document", "r", {})]
    outbox.put([metric("a"), waiting[0], metric("b"), waiting[1], waiting[2], metric("c")])
    assert not outbox.flush(limit_s=0.5)
    assert stored.metrics == ["a", "b", "c"]
    assert outbox.stop() == waiting


def test_a_document_waits_for_all_before_it(stored: Store, outbox: Outbox) -> None:
    stored.away = {"tracking"}
    outbox.put([text("x"), metric("a"), Operation("document", "r", {}), text("y")])
    assert not outbox.flush(limit_s=0.5)
    assert stored.kinds == ["text"]
    stored.away = set()
    assert outbox.flush(limit_s=5)
    assert stored.kinds == ["text", "batch", "document", "text"]


def test_only_the_faulty_one_of_a_request_is_put_aside(stored: Store, outbox: Outbox) -> None:
    stored.gate.clear()
    outbox.put([text("x")])
    outbox.put([metric("a"), metric("bad"), metric("b")])
    stored.gate.set()
    assert outbox.flush(limit_s=5)
    assert stored.metrics == ["a", "b"]
    assert [(operation.content["metrics"][0][0], error) for operation, error in outbox.rejected] == [
        ("bad", "bad metric")
    ]


def test_a_request_that_takes_long_is_waited_for(stored: Store, outbox: Outbox) -> None:
    stored.gate.clear()
    threading.Timer(0.5, stored.gate.set).start()
    outbox.put([text("x")])
    assert outbox.flush(limit_s=0)


def test_nothing_queued_is_nothing_to_wait_for(outbox: Outbox) -> None:
    assert outbox.flush(limit_s=0)
    assert outbox.stop() == []


TEXTS = st.text(max_size=20)
MAKERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "metrics": lambda n: {"metrics": [(f"m{i}", float(i), 0, i) for i in range(n)]},
    "params": lambda n: {"params": [(f"p{i}", "v" * 6000) for i in range(n)]},
    "tags": lambda n: {"tags": [(f"t{i}", "v" * 8000) for i in range(n)]},
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("n", [0, 1, 99, 101, 2500])
def test_any_number_fits_into_requests_that_mlflow_takes(kind: str, n: int) -> None:
    made = make_batches("r", **MAKERS[kind](n))
    joined = [join_operations(group) for group in take_joinable(made)]
    items = [item for operation in joined for item in operation.content.get(kind, ())]
    assert items == [list(item) for item in MAKERS[kind](n)[kind]]
    for operation in joined:
        n_items = {key: len(operation.content.get(key, ())) for key in MAKERS}
        assert sum(n_items.values()) <= 1000
        assert max(n_items["params"], n_items["tags"]) <= 100
        assert len(operation.to_line()) <= 1_000_000


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=20), st.floats(allow_nan=False), TEXTS)
def test_an_operation_comes_back_from_its_line(tags: list[tuple[str, str]], value: float, path: str) -> None:
    content = {"tags": [list(tag) for tag in tags], "metrics": [["m", value, 1, 2]], "path": path}
    line = Operation("batch", "r", content).to_line()
    assert len(line.splitlines()) == 1
    back = parse_operation(line)
    assert (back.kind, back.run_id, back.content) == ("batch", "r", content)


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"kind": "other", "run_id": "r", "content": {}}', '"x"'])
def test_a_line_that_is_no_operation_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of JSON or ours
        parse_operation(line)


def test_the_last_value_of_a_tag_stands() -> None:
    joined = join_operations([Operation("batch", "r", {"tags": [["t", value]]}) for value in "abc"])
    assert joined.content["tags"] == [["t", "c"]]
