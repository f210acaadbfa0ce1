"""Weights files: written whole, read without running anything, checked before they are used."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlmeta.errors import NotFoundError, WeightsError

StateDict = Mapping[str, Tensor]
MAX_TENSORS = 50_000


def save_weights(state: StateDict, folder: Path, name: str) -> str:
    """Write ``<name>.pt`` and ``<name>.safetensors`` into a folder.

    Returns:
        The SHA-256 (hex) of the .pt file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
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
        file: A .pt file.
        sha256: What the file's SHA-256 must be; None where nobody recorded it.

    Raises:
        NotFoundError: If there is no such file.
        WeightsError: If the file is not the one that was recorded, is damaged, or holds more than tensors.
    """
    if not file.is_file():
        raise NotFoundError(f"{file}: there is no such weights file")
    if sha256 is not None and (found := hash_file(file)) != sha256:
        raise WeightsError(f"{file.name}: its SHA-256 is {found[:12]}…, the attempt recorded {sha256[:12]}…; refused")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        OSError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{file.name}: is not a state dict that can be loaded safely: {reason}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file.name}: holds more than a state dict's tensors; refused")
    if len(state) > MAX_TENSORS:
        raise WeightsError(f"{file.name}: holds {len(state):,} tensors; at most {MAX_TENSORS:,} are read")
    return state


def load_weights(model: nn.Module, state: StateDict, *, source: str) -> None:
    """Put a state dict into the model whose names and shapes it has, to the last one.

    Raises:
        WeightsError: If names or shapes disagree; names the first ones.
    """
    wanted = model.state_dict()
    differences = [f"{key} is missing" for key in wanted.keys() - state.keys()]
    differences += [f"{key} is not of this model" for key in state.keys() - wanted.keys()]
    differences += [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(wanted[key].shape)}"
        for key in wanted.keys() & state.keys()
        if state[key].shape != wanted[key].shape
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise WeightsError(f"{source}: does not fit the model ({len(differences)} differences): {shown}")
    model.load_state_dict(state)


def load_backbone(model: nn.Module, state: StateDict, *, source: str) -> int:
    """Put every tensor of equal name and shape into the model and leave the rest, the head, as it is.

    Returns:
        How many tensors were taken.

    Raises:
        WeightsError: If less than half of the model's numbers are in the file.
    """
    wanted = model.state_dict()
    overlap = {key: value for key, value in state.items() if key in wanted and wanted[key].shape == value.shape}
    share = sum(v.numel() for v in overlap.values()) / max(1, sum(v.numel() for v in wanted.values()))
    if share < 0.5:
        raise WeightsError(f"{source}: has {share:.0%} of the model's weights by name and shape; half are needed")
    model.load_state_dict({**wanted, **overlap})
    return len(overlap)
