"""The files that a training and a test leave: tables as CSV, pictures as PNG."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlmeta.data.account import Account
from mlmeta.data.decoding import DecodedPictures, SkippedPicture
from mlmeta.data.pictures import Picture
from mlmeta.reports.attempt_plots import Mistake, number_labels, plot_confusion_matrix, plot_mistakes

MAX_MISTAKES = 16


def write_test_report(
    folder: Path,
    decoded: DecodedPictures,
    truth: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    label_names: Sequence[str],
    *,
    title: str,
) -> None:
    """Write predictions.csv, per_class.csv, confusion_matrix.csv and .png, and mistakes.png.

    Args:
        folder: Where they are written.
        decoded: The tested pictures, n of them.
        truth: True class indices (n,).
        shares: Share of each label (n, n_labels), rows adding up to 1.
        label_names: In the order of the indices.
        title: Of the plots.
    """
    matrix = count_confusions(truth, shares.argmax(axis=1), n_labels=len(label_names))
    _write_predictions(folder / "predictions.csv", decoded, truth, shares, label_names)
    _write_per_class(folder / "per_class.csv", matrix, label_names)
    write_table(
        folder / "confusion_matrix.csv",
        ["true label", *label_names],
        ([name, *row.tolist()] for name, row in zip(label_names, matrix, strict=True)),
    )
    drawn, note = number_labels(label_names)
    plot_confusion_matrix(folder / "confusion_matrix.png", matrix, label_names=drawn, title=title, note=note)
    mistakes = find_mistakes(decoded, truth, shares, drawn)
    plot_mistakes(folder / "mistakes.png", mistakes, title=f"{title}: worst mistakes", note=note)


def write_table(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table in UTF-8."""
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def _write_predictions(
    file: Path,
    decoded: DecodedPictures,
    truth: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    label_names: Sequence[str],
) -> None:
    rows = (
        [
            picture.id,
            label_names[true],
            label_names[row.argmax()],
            f"{row.max():.6f}",
            int(true == row.argmax()),
        ]
        for picture, true, row in zip(decoded.pictures, truth, shares, strict=True)
    )
    write_table(file, ["id", "label", "predicted", "confidence", "correct"], rows)


def _write_per_class(file: Path, matrix: npt.NDArray[np.int64], label_names: Sequence[str]) -> None:
    rows = (
        [name, int(n), f"{precision:.6f}", f"{recall:.6f}", f"{f1:.6f}"]
        for name, n, precision, recall, f1 in zip(label_names, matrix.sum(axis=1), *score_labels(matrix), strict=True)
    )
    write_table(file, ["label", "n_pictures", "precision", "recall", "f1"], rows)


def count_confusions(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], *, n_labels: int
) -> npt.NDArray[np.int64]:
    """Return the confusion matrix (n_labels, n_labels): how many of row i were taken for column j."""
    return np.bincount(truth * n_labels + predicted, minlength=n_labels**2).reshape(n_labels, n_labels)


def score_labels(matrix: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Return precision, recall and F1 of each label, (n_labels,), from the confusion matrix; 0 for 0 out of 0."""
    right, there, said = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    shares = ((right, said), (right, there), (2 * right, there + said))
    return tuple(part / np.maximum(whole, 1) for part, whole in shares)


def find_mistakes(
    decoded: DecodedPictures,
    truth: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    label_names: Sequence[str],
) -> list[Mistake]:
    """Return the mistakes the model was surest of, worst first, at most 16."""
    predicted = shares.argmax(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    worst = wrong[np.argsort(-shares[wrong, predicted[wrong]], kind="stable")][:MAX_MISTAKES]
    return [
        Mistake(
            image=decoded.array(int(index)),
            true_label=label_names[truth[index]],
            predicted_label=label_names[predicted[index]],
            confidence=float(shares[index].max()),
            picture_id=decoded.pictures[index].id,
        )
        for index in worst
    ]


def write_skipped(file: Path, skipped: Sequence[SkippedPicture]) -> None:
    """Write the pictures that were left out, with the reasons."""
    write_table(file, ["id", "reason"], ([picture.id, picture.reason] for picture in skipped))


def write_conflicts(file: Path, conflicts: Sequence[Picture], label_names: Sequence[str]) -> None:
    """Write the pictures that `mlmeta.data.pictures.find_conflicts` gives, those of one content below each other."""
    rows = ([picture.digest, label_names[picture.label], picture.id] for picture in conflicts)
    write_table(file, ["content_sha256", "label", "id"], rows)


def write_account(file: Path, account: Account) -> None:
    """Write the account of the data: everything that was looked at, and what became of it."""
    header, *rows = account.rows()
    write_table(file, header, rows)
