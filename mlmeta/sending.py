"""Does one operation in MLflow, and tells the errors that may pass from those that will not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlmeta.errors import MlmetaError
from mlmeta.finding import make_document
from mlmeta.notes import write_note
from mlmeta.operations import Operation

# Who may not write now may be let in again later, after a new login.
_MAY_PASS = {401, 403, 408, 425, 429}
_FAULTS_OF_OURS = (TypeError, ValueError, LookupError, AttributeError, AssertionError)


def send_operation(client: MlflowClient, operation: Operation, *, folder: Path) -> None:
    """Do one operation; doing it again changes nothing.

    Args:
        client: Of the tracking store.
        operation: Any.
        folder: What the folders of files are relative to.

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


def _send_document(client: MlflowClient, operation: Operation, folder: Path) -> None:
    document = make_document(operation.run_id, client=client)
    client.log_text(operation.run_id, json.dumps(document, indent=2, ensure_ascii=False), "attempt.json")


def _send_note(client: MlflowClient, operation: Operation, folder: Path) -> None:
    client.set_tag(operation.run_id, "mlflow.note.content", write_note(client, operation.run_id))


_SENDERS: dict[str, Callable[[MlflowClient, Operation, Path], None]] = {
    "batch": _send_batch,
    "status": _send_status,
    "dataset": _send_dataset,
    "text": _send_text,
    "files": _send_files,
    "document": _send_document,
    "note": _send_note,
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
