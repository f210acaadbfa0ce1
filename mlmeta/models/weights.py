"""Weights files: written whole, read without running anything, checked before they are used.

A .pt file is a pickle, which could name any function to call. torch reads it with ``weights_only=True`` and no
fallback; before that, `read_weights` looks which names it asks for and how large it says to be, so that neither
code nor memory is at the mercy of the file.
"""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlmeta.errors import NotFoundError, WeightsError

StateDict = Mapping[str, Tensor]
MAX_TENSORS = 50_000
# Of a model's numbers this share must be in a file for it to be worth starting from.
LEAST_OVERLAP = 0.5
# A tied weight stands in the file once and in the state dict twice or more; no plain network shares more than this.
_MAX_SHARED = 4
# The pickles of torch's older format, each after the other: a number, a version, the system, the state dict, keys.
_N_LEGACY_PICKLES = 5
_STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_ALLOWED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {dtype}Storage" for dtype in _STORAGES.split()),
}
_UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, SafetensorError, TypeError, ValueError, pickle.PickleError, struct.error,
    zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip


def save_weights(state: StateDict, folder: Path, name: str) -> str:
    """Write ``<name>.pt`` and ``<name>.safetensors`` into a folder.

    Tensors that share memory are written apart, since safetensors knows no sharing.

    Returns:
        The SHA-256 (hex) of the .pt file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    file = folder / f"{name}.pt"
    torch.save(plain, file)
    save_file(plain, folder / f"{name}.safetensors")
    return hash_file(file)


def hash_file(file: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_weights(file: Path, *, sha256: str | None = None) -> StateDict:
    """Read a state dict; nothing in the file is run.

    Args:
        file: A .safetensors file, or a state dict that torch saved.
        sha256: What the file's SHA-256 must be; None where nobody recorded it.

    Returns:
        Dense real tensors on the CPU, at most `MAX_TENSORS`, that take no more memory than the file plausibly holds.

    Raises:
        NotFoundError: If there is no such file.
        WeightsError: If the file is not the one that was recorded, is damaged, or holds more than tensors.
    """
    if file.is_dir():
        raise WeightsError(f"{file}: is a folder, not a weights file")
    if not file.is_file():
        raise NotFoundError(f"{file}: there is no such weights file")
    try:
        if sha256 is not None and (found := hash_file(file)) != sha256:
            message = f"its SHA-256 is {found[:12]}…, the attempt recorded {sha256[:12]}…; refused"
            raise WeightsError(f"{file.name}: {message}")
        state = load_file(file) if file.suffix == ".safetensors" else _load_pickle(file)
        _check_state(state, n_bytes=file.stat().st_size, name=file.name)
    except _UNREADABLE as error:
        raise WeightsError(f"{file.name}: is not a state dict that can be loaded safely: {_explain(error)}") from None
    return {key: value.detach() for key, value in state.items()}


def _load_pickle(file: Path) -> Any:
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
    names = set(_read_zip_names(file) if is_zip else _read_legacy_names(file))
    if unknown := sorted(names - _ALLOWED):
        raise ValueError(f"it asks for {unknown[0].replace(' ', '.')}, which no state dict needs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_zip_names(file: Path) -> Iterator[str]:
    """Yield the names that the pickle of a .pt file asks for.

    Raises:
        ValueError: If the archive would unpack to more than its own size, which torch never writes.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise ValueError("it would unpack to more than its own size")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as stream:
                    yield from _read_names(stream)


def _read_legacy_names(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        for _ in range(_N_LEGACY_PICKLES):
            yield from _read_names(stream)


def _read_names(stream: IO[bytes]) -> Iterator[str]:
    """Yield "module name" of everything that a pickle asks for, without loading it.

    Raises:
        ValueError: If it holds more tensors than are read, which would take long to make.
    """
    n_tensors = 0
    for opcode, argument, _ in pickletools.genops(stream):
        # Each tensor names its memory once.
        n_tensors += opcode.name in ("BINPERSID", "PERSID")
        if n_tensors > MAX_TENSORS:
            raise ValueError(f"it holds more than {MAX_TENSORS:,} tensors")
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield "a name put together"


def _explain(error: BaseException) -> str:
    """Return an error in one line; torch's advice to load without its safeguard is left out."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than tensors"
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return " ".join(text.split())[:200] or type(error).__name__


def _check_state(state: object, *, n_bytes: int, name: str) -> None:
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{name}: holds more than a state dict's tensors; refused")
    if len(state) > MAX_TENSORS:
        raise WeightsError(f"{name}: holds {len(state):,} tensors; at most {MAX_TENSORS:,} are read")
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise WeightsError(f"{name}: {key} is not a dense tensor of real numbers; refused")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{name}: {key} claims {value.numel():,} numbers, more than the file holds; refused")
    total = sum(value.numel() * value.element_size() for value in state.values())
    if total > _MAX_SHARED * n_bytes:
        raise WeightsError(f"{name}: its tensors claim {total:,} bytes, the file has {n_bytes:,}; refused")


def load_weights(model: nn.Module, state: StateDict, *, source: str) -> None:
    """Put a state dict into the model whose names and shapes it has, to the last one.

    Floating-point numbers of another width (a float64 or float16 file) are taken over into the model's own;
    integers never become floating-point numbers, nor the other way round.

    Raises:
        WeightsError: If names, shapes or kinds of numbers disagree; names the first ones. The model is unchanged.
    """
    wanted = model.state_dict()
    differences = [f"{key} is missing" for key in wanted.keys() - state.keys()]
    differences += [f"{key} is not of this model" for key in state.keys() - wanted.keys()]
    differences += [text for key in wanted.keys() & state.keys() if (text := _compare(key, wanted[key], state[key]))]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise WeightsError(f"{source}: does not fit the model ({len(differences)} differences): {shown}")
    model.load_state_dict(state)


def _compare(key: str, ours: Tensor, theirs: Tensor) -> str:
    """Return in words why one tensor cannot take the place of the other; nothing if it can."""
    if theirs.shape != ours.shape:
        return f"{key} is {tuple(theirs.shape)}, the model has {tuple(ours.shape)}"
    if theirs.is_floating_point() != ours.is_floating_point():
        return f"{key} is {theirs.dtype}, the model has {ours.dtype}"
    return ""


def load_backbone(model: nn.Module, state: StateDict, *, source: str) -> int:
    """Put every tensor of equal name and shape into the model and leave the rest, the head, as it is.

    Returns:
        How many tensors were taken.

    Raises:
        WeightsError: If less than half of the model's numbers are in the file. The model is unchanged.
    """
    wanted = model.state_dict()
    overlap = find_overlap(wanted, state)
    if (share := measure_overlap(wanted, overlap)) < LEAST_OVERLAP:
        raise WeightsError(f"{source}: has {share:.0%} of the model's weights by name and shape; half are needed")
    model.load_state_dict({**wanted, **overlap})
    return len(overlap)


def find_overlap(wanted: StateDict, state: StateDict) -> dict[str, Tensor]:
    """Return the tensors of a state dict that a model can take over: of equal name, shape and kind of number."""
    return {key: value for key, value in state.items() if key in wanted and not _compare(key, wanted[key], value)}


def measure_overlap(wanted: StateDict, overlap: StateDict) -> float:
    """Return the share of a model's numbers that are in an overlap, 0 to 1."""
    return _count(overlap.values()) / max(1, _count(wanted.values()))


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
