from __future__ import annotations

import pytest

from mlmeta.status import FOLLOWS, MLFLOW_STATUS, Status


def reachable_from(start: Status) -> set[Status]:
    found, new = {start}, [start]
    while new:
        new = [status for status in FOLLOWS[new.pop()] if status not in found] + new
        found |= set(new)
    return found


@pytest.mark.parametrize("status", Status)
def test_every_status_says_what_may_follow_and_what_mlflow_says(status: Status) -> None:
    assert status not in FOLLOWS[status]
    assert MLFLOW_STATUS[status] in {"RUNNING", "FINISHED", "FAILED", "KILLED"}


@pytest.mark.parametrize("status", Status)
def test_every_status_can_be_reached_by_a_new_attempt(status: Status) -> None:
    assert status in reachable_from(Status.INCOMPLETE)


@pytest.mark.parametrize("status", Status)
def test_every_attempt_can_still_become_complete(status: Status) -> None:
    assert Status.COMPLETE in reachable_from(status)


@pytest.mark.parametrize("status", Status)
def test_an_attempt_is_never_new_again(status: Status) -> None:
    assert Status.INCOMPLETE not in FOLLOWS[status]


@pytest.mark.parametrize("status", [Status.INCOMPLETE, Status.TRAINING, Status.TRAINED, Status.TESTING])
def test_whatever_runs_may_fail_or_be_interrupted(status: Status) -> None:
    assert {Status.FAILED, Status.INTERRUPTED} <= FOLLOWS[status]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Status.COMPLETE, Status.TRAINING),
        (Status.INCOMPLETE, Status.COMPLETE),
        (Status.TRAINING, Status.COMPLETE),
        (Status.DIVERGED, Status.TRAINING),
    ],
)
def test_no_state_is_skipped_or_taken_back(before: Status, after: Status) -> None:
    assert after not in FOLLOWS[before]


def test_the_names_are_those_of_the_attempt_documents() -> None:
    expected = "incomplete Training Trained Testing Complete Failed Interrupted Diverged Pruned"
    assert [str(status) for status in Status] == expected.split()
