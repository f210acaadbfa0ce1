"""The states of an attempt, and which may follow which."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The state of an attempt, as it stands in the tag ``mlmeta.status``."""

    INCOMPLETE = "incomplete"
    TRAINING = "Training"
    TRAINED = "Trained"
    TESTING = "Testing"
    COMPLETE = "Complete"
    FAILED = "Failed"
    INTERRUPTED = "Interrupted"
    DIVERGED = "Diverged"
    PRUNED = "Pruned"


_ENDS = {Status.FAILED, Status.INTERRUPTED}
# A trained attempt may be tested again and again; an interrupted or failed one may be taken up again.
FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.INCOMPLETE: frozenset({Status.TRAINING, *_ENDS}),
    Status.TRAINING: frozenset({Status.TRAINED, Status.DIVERGED, Status.PRUNED, *_ENDS}),
    Status.TRAINED: frozenset({Status.TESTING, *_ENDS}),
    Status.TESTING: frozenset({Status.COMPLETE, *_ENDS}),
    Status.COMPLETE: frozenset({Status.TESTING}),
    Status.FAILED: frozenset({Status.TRAINING, Status.TESTING}),
    Status.INTERRUPTED: frozenset({Status.TRAINING, Status.TESTING}),
    Status.DIVERGED: frozenset({Status.TESTING}),
    Status.PRUNED: frozenset({Status.TRAINING, Status.TESTING}),
}

# MLflow's own status of a run in each state.
MLFLOW_STATUS: dict[Status, str] = {
    Status.INCOMPLETE: "RUNNING",
    Status.TRAINING: "RUNNING",
    Status.TRAINED: "FINISHED",
    Status.TESTING: "RUNNING",
    Status.COMPLETE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.INTERRUPTED: "KILLED",
    Status.DIVERGED: "FAILED",
    Status.PRUNED: "FINISHED",
}
