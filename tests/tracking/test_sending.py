"""Which errors may pass when an operation is sent again, as MLflow and the libraries under it really raise them."""

from __future__ import annotations

import errno

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE

from mlmeta.errors import NotFoundError
from mlmeta.tracking.operations import may_pass


def http_error(code: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = code
    return requests.HTTPError("answer", response=response)


def missing_because_of(cause: Exception) -> NotFoundError:
    error = NotFoundError("no artifact")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("without a code"),
        MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE),
        MlflowException("broken", error_code=INTERNAL_ERROR),
        MlflowException("too many", error_code=REQUEST_LIMIT_EXCEEDED),
        OSError(errno.ENOSPC, "No space left on device"),
        NotADirectoryError("mount"),
        requests.ConnectionError("refused"),
        requests.Timeout("slow"),
        http_error(503),
        http_error(429),
        http_error(403),
        RuntimeError("of a library of an artifact store"),
        missing_because_of(requests.ConnectionError("refused")),
    ],
    ids=str,
)
def test_what_comes_from_outside_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        MlflowException.invalid_parameter_value("bad param"),
        http_error(400),
        http_error(404),
        TypeError("a fault of ours"),
        KeyError("a fault of ours"),
        NotFoundError("no cause"),
        missing_because_of(FileNotFoundError("train_commands.json")),
    ],
    ids=str,
)
def test_what_is_refused_does_not_pass(error: Exception) -> None:
    assert not may_pass(error)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("run_id", ["0" * 32, "no run id"])
def test_a_run_that_is_not_there_does_not_come(run_id: str) -> None:
    with pytest.raises(MlflowException) as raised:
        MlflowClient().log_metric(run_id, "m", 1.0)
    assert not may_pass(raised.value)
