"""Transferability: how well given weights tell the labels of a task apart before any training on it.

Notation: n pictures, d features, a feature the input of the last layer with weights, p a share of right answers.

    score = share of pictures whose k nearest others by the cosine of their features vote for their label
    guard = score - p > 2 sqrt(p (1 - p) / n), p the score of the untrained network: two standard errors

The cosine leaves out how large the features are, which differs from network to network. To leave each picture out of
its own neighbours needs no second set of pictures, so that the validation pictures stay unseen (the idea of scoring
frozen features: Bao et al., An Information-Theoretic Approach to Transferability, 2019; by nearest neighbours:
Renggli et al., Which Model to Transfer?, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmeta.data.batches import Batches, use_channels_last
from mlmeta.data.decoding import DecodedPictures
from mlmeta.data.metafeatures import take_shares
from mlmeta.data.task import Task
from mlmeta.errors import BadInputError
from mlmeta.models.layers import Concat, Residual, forward_pictures

N_NEIGHBOURS = 5
MAX_PICTURES = 500
# Of float32 numbers: 128 MiB for the features of all pictures.
MAX_NUMBERS = 2**25
N_ERRORS = 2.0
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Head:
    """The last layer with weights, the one that gives the labels.

    Attributes:
        layer: The layer; a `Residual` or `Concat` is one layer.
        keys: Of the model's state dict: all of the layer's, and of what runs after it.
        n_features: How many numbers of a picture arrive at the layer.
    """

    layer: nn.Module
    keys: frozenset[str]
    n_features: int


def find_head(model: nn.Module, input_shape: Sequence[int]) -> Head:
    """Return a model's head, by running two black pictures and seeing which layer comes last.

    Args:
        model: Is left in evaluation mode.
        input_shape: (channels, height, width) of a picture.

    Raises:
        BadInputError: If no layer has weights.
    """
    layers = dict(_list_layers(model))
    ran: list[tuple[str, int]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: ran.append((name, inputs[0].numel() // 2)))
        for name, layer in layers.items()
    ]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            model.eval()
            forward_pictures(model, torch.zeros((2, *input_shape), device=device))
    finally:
        for hook in hooks:
            hook.remove()
    weighted = [place for place, (name, _) in enumerate(ran) if any(p.ndim > 1 for p in layers[name].parameters())]
    if not weighted:
        raise BadInputError("model: no layer has weights that could be taken from another attempt")
    (first, n_features), *after = ran[weighted[-1] :]
    last = tuple(f"{name}." for name in (first, *(name for name, _ in after)))
    keys = frozenset(key for key in model.state_dict() if key.startswith(last))
    return Head(layers[first], keys, n_features)


def _list_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every layer with parameters of its own; what stands in a Residual or Concat belongs to that one."""
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, Residual | Concat) or next(child.parameters(recurse=False), None) is not None:
            yield path, child
        else:
            yield from _list_layers(child, f"{path}.")


def draw_pictures(task: Task, *, seed: int, n: int = MAX_PICTURES) -> DecodedPictures:
    """Return at most n training pictures, each label's share as in all of them."""
    training = task.select("train")
    labels = training.labels.numpy()
    order = np.random.default_rng(seed).permutation(len(labels))
    return task.decoded.select([training.pictures[index] for index in take_shares(order, labels, n)])


@dataclass(frozen=True)
class Probe:
    """The pictures on which weights are scored.

    Attributes:
        head: Of the model.
        batches: Without anything random.
    """

    model: nn.Module
    head: Head
    batches: Batches

    @property
    def n(self) -> int:
        """The number of pictures."""
        return len(self.batches)

    def score(self) -> float:
        """Return the score of the model's present weights, 0 to 1; 0 where features are not finite."""
        features = read_features(self.model, self.head, self.batches)
        return score_neighbours(features, self.batches.labels.cpu())


def make_probe(model: nn.Module, head: Head, task: Task, *, batch_size: int, seed: int) -> Probe:
    """Draw the pictures on which weights of a model are scored: fewer where their features would fill the memory."""
    device = next(p.device for p in model.parameters())
    n = max(2, min(MAX_PICTURES, MAX_NUMBERS // head.n_features))
    batches = task.batches(
        draw_pictures(task, seed=seed, n=n),
        batch_size=batch_size,
        device=device,
        channels_last=use_channels_last(model, device),
    )
    return Probe(model, head, batches)


@torch.inference_mode()
def read_features(model: nn.Module, head: Head, batches: Batches) -> Tensor:
    """Return what arrives at the head, float32 (n, d) on the CPU, in the pictures' order.

    Of maps that arrive at a convolution the mean over pixels is taken; of a picture's crops the mean.
    """
    model.eval()
    arrived: list[Tensor] = []

    def note(_layer: nn.Module, inputs: Any) -> None:
        arrived.append(inputs[0].detach())

    rows = []
    hook = head.layer.register_forward_pre_hook(note)
    try:
        for pictures, labels in batches.in_order():
            arrived.clear()
            forward_pictures(model, pictures)
            x = arrived[-1].float()
            x = x.flatten(2).mean(dim=2) if isinstance(head.layer, _CONVOLUTIONS) and x.ndim > 2 else x
            # A picture's crops stand side by side.
            rows.append(x.reshape(len(labels), -1, *x.shape[1:]).mean(dim=1).flatten(1).cpu())
    finally:
        hook.remove()
    return torch.cat(rows)


def score_neighbours(features: Tensor, labels: Tensor, *, k: int = N_NEIGHBOURS) -> float:
    """Return the share of rows whose label the k other rows nearest by cosine vote for.

    Of labels with equal votes the one whose neighbours are nearer counts.

    Args:
        features: Shape (n, d).
        labels: int64, shape (n,), from 0 on.
        k: At least 1; of fewer than k other rows all vote.

    Returns:
        0 to 1; 0 for fewer than two rows, or where a feature is not finite.
    """
    n = len(features)
    if n < 2 or not bool(torch.isfinite(features).all()):
        return 0.0
    unit = functional.normalize(features.double(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-math.inf)
    nearest, places = cosines.topk(min(k, n - 1), dim=1)
    votes = torch.zeros((n, int(labels.max()) + 1), dtype=torch.float64)
    # A cosine is at most 1: a thousandth of it decides between equal votes and never outweighs one.
    votes.scatter_add_(1, labels[places], 1 + nearest / 1000)
    return float((votes.argmax(dim=1) == labels).double().mean())


def find_margin(untrained: float, n: int) -> float:
    """Return by how much a score must exceed that of the untrained network: two of its standard errors."""
    return N_ERRORS * math.sqrt(untrained * (1 - untrained) / n)


def is_better(score: float, untrained: float, n: int) -> bool:
    """Return whether weights carry over: their score is beyond what chance does to the untrained network's."""
    return score - untrained > find_margin(untrained, n)
