from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mlmeta.errors import CommandsError
from mlmeta.models import shapes
from mlmeta.models.shapes import SizeGuard, count_numbers, format_bytes, memory_bytes, refuse_outputs, refuse_weights


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (2**30, "1.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (2**52, "4,096.0 TiB"),
    ],
)
def test_bytes_are_written_for_people(n_bytes: int, expected: str) -> None:
    assert format_bytes(n_bytes) == expected


@pytest.mark.parametrize(("limit", "is_read"), [("1048576\n", True), ("max\n", False), ("9223372036854771712", False)])
def test_a_containers_limit_counts_where_it_is_less_than_the_machines_memory(
    limit: str, is_read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.max"
    file.write_text(limit)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(shapes, "_LIMIT_FILES", (str(tmp_path / "absent"), str(file)))
    assert memory_bytes() == (1048576 if is_read else physical)


def test_buffers_are_counted_too() -> None:
    # 2 × 8 parameters, 2 × 8 running statistics, and the number of batches.
    assert count_numbers(nn.BatchNorm1d(8)) == 33


def test_weights_are_refused_from_the_first_number_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "memory_bytes", lambda: 2000)
    refuse_weights("model.layers.0", "Linear", 100)
    with pytest.raises(
        CommandsError, match=r"model.layers.0: the model has 101 parameters up to Linear and would need"
    ):
        refuse_weights("model.layers.0", "Linear", 101)


def test_outputs_are_refused_from_the_first_byte_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "memory_bytes", lambda: 2048)
    refuse_outputs("model.layers.0", "Linear", 2048)
    with pytest.raises(CommandsError, match=r"outputs up to Linear take 2.0 KiB for one picture; .* 2.0 KiB"):
        refuse_outputs("model.layers.0", "Linear", 2049)


def test_what_a_layer_makes_on_its_way_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "memory_bytes", lambda: 4 * 1000)
    x = torch.empty((2, 10), device="meta")
    with SizeGuard("model.layers.3", "Outer", n_pictures=2):
        x.expand(100, 2, 10).sum(dim=0)
    with (
        SizeGuard("model.layers.3", "Outer", n_pictures=2),
        pytest.raises(CommandsError, match=r"model.layers.3: Outer would make .*, 4.0 KiB; this machine has 3.9 KiB"),
    ):
        x[:, :1].expand(2, 1025).contiguous().sum(dim=1)


def test_a_batch_that_the_machine_could_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "memory_bytes", lambda: 4 * 3 * 100 * 100 * 8)
    shapes.refuse_batch((3, 100, 100), 8)
    with pytest.raises(CommandsError, match=r"a batch of 9 pictures of 3×100×100 .* 1\.0 MiB; .* at most 8"):
        shapes.refuse_batch((3, 100, 100), 9)
    with pytest.raises(CommandsError, match=r"at most 4 would fit"):
        shapes.refuse_batch((3, 100, 100), 5, kept_bytes=4 * 3 * 100 * 100)
    with pytest.raises(CommandsError, match=r"make the pictures smaller"):
        shapes.refuse_batch((3, 400, 400), 1)
