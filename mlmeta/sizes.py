"""What this machine can hold: sizes are checked on torch's ``meta`` device, before any memory is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlmeta.errors import CommandsError, Fault

FLOAT_BYTES = 4
# Weights, gradients, two moments of the optimizer, and the copy of the best epoch.
TRAINING_COPIES = 5
# Where a container's own limit stands (cgroup v2, then v1); "max" or a huge number means none.
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's where that is less.

    64 GiB where the system does not say.
    """
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = 64 * 2**30
    return min([physical, *(limit for file in _LIMIT_FILES if (limit := _read_limit(file)))])


def _read_limit(file: str) -> int:
    try:
        text = Path(file).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdecimal() else 0


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes for people, such as ``4.0 KiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} bytes" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"


def count_numbers(module: nn.Module) -> int:
    """Return how many numbers a module holds, its buffers too."""
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())


def refuse_weights(path: str, name: str, n_numbers: int) -> None:
    """Refuse a model whose weights alone this machine could not train.

    Args:
        path: The layer that was added last.
        name: Its class.
        n_numbers: Parameters and buffers of the model up to there.

    Raises:
        CommandsError: If the weights with gradients, two moments and a copy (20 bytes a number) exceed the memory.
    """
    limit, needed = memory_bytes(), n_numbers * FLOAT_BYTES * TRAINING_COPIES
    if needed > limit:
        message = (
            f"the model has {n_numbers:,} parameters up to {name} and would need {format_bytes(needed)} "
            f"to train; this machine has {format_bytes(limit)}"
        )
        raise CommandsError([Fault(path, message)])


def refuse_outputs(path: str, name: str, n_bytes: int) -> None:
    """Refuse a model whose outputs for a single picture this machine could not keep for the backward pass.

    Args:
        path: The layer that was added last.
        name: Its class.
        n_bytes: What the outputs up to there take for one picture.

    Raises:
        CommandsError: If they exceed the memory.
    """
    limit = memory_bytes()
    if n_bytes > limit:
        message = f"the outputs up to {name} take {format_bytes(n_bytes)} for one picture"
        raise CommandsError([Fault(path, f"{message}; this machine has {format_bytes(limit)}")])


def refuse_batch(input_shape: Sequence[int], n_pictures: int, *, kept_bytes: int = 0) -> None:
    """Refuse a batch that this machine could not hold, before any of it is made.

    Args:
        input_shape: (channels, height, width) of a picture as the model gets it, float32.
        n_pictures: In a batch.
        kept_bytes: What a training keeps of each picture on its way through the model, at the least.

    Raises:
        CommandsError: If they exceed the memory; says which batch size would not.
    """
    limit, each = memory_bytes(), math.prod(input_shape) * FLOAT_BYTES + kept_bytes
    if each * n_pictures > limit:
        shape = "×".join(f"{size:,}" for size in input_shape)
        message = (
            f"a batch of {n_pictures:,} pictures of {shape} numbers takes at least {format_bytes(each * n_pictures)}"
        )
        advice = f"at most {limit // each:,} would fit" if each <= limit else "make the pictures smaller by image_ops"
        raise CommandsError([Fault("batch_size", f"{message}; this machine has {format_bytes(limit)}; {advice}")])


class SizeGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses a tensor that this machine could not hold as soon as an operation on ``meta`` makes it.

    A layer's output may be small and what it makes on the way huge (a LocalResponseNorm of size 10^12).

    Args:
        path: Where the layer stands in the commands.
        name: Its class.
        n_pictures: Pictures in the batch; the size of one counts.
    """

    def __init__(self, path: str, name: str, *, n_pictures: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path
        self.name = name
        self.n_pictures = n_pictures
        self.limit = memory_bytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at the sizes of what it made.

        Raises:
            CommandsError: If one of them exceeds the memory.
        """
        output = func(*args, **(kwargs or {}))
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._check(made)
        return output

    def _check(self, made: Tensor) -> None:
        n_bytes = made.numel() * made.element_size() // self.n_pictures
        if n_bytes > self.limit:
            shape = "×".join(f"{size:,}" for size in made.shape[1:]) or f"{made.numel():,}"
            message = f"{self.name} would make {shape} numbers of one picture, {format_bytes(n_bytes)}"
            raise CommandsError([Fault(self.path, f"{message}; this machine has {format_bytes(self.limit)}")])
