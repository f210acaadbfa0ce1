"""What the history asks of a tracking store, and what it is told.

There are two that answer: `mlmeta.history_api` by MLflow's public interface, and `mlmeta.history_sql`, faster, from
MLflow's tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from mlmeta.history_rows import empty_table


@dataclass(frozen=True)
class Changes:
    """What is other than at the last reading.

    Attributes:
        runs: New and changed ones, see `mlmeta.history_rows`.
        gone: The ids of runs that are deleted.
        cursor: To be given back the next time; JSON.
    """

    runs: pa.Table
    gone: list[str]
    cursor: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What the last reading gave: empty before the first."""

    table: pa.Table = field(default_factory=empty_table)
    cursor: Mapping[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """What the history asks of a tracking store."""

    def is_unchanged(self, cursor: Mapping[str, Any]) -> bool:
        """Return whether nothing at all was written since, as far as that can be told at once."""

    def read_changes(self, known: Known) -> Changes:
        """Return what is other than at the last reading; everything where there was none."""

    def read_curves(self, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
        """Yield (run id, step, value) of a metric's whole history."""
