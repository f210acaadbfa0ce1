"""Numbers that describe a task, made from its pictures and labels.

Notation: n pictures, K labels, ln the natural logarithm. All but the counts come from at most
`max_pictures` pictures, drawn with a seed; each of them weighs the same, whatever its size.

They are kept on this machine, so that the tenth attempt on a task does not compute them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlmeta.errors import PicturesError
from mlmeta.files import cache_folder, replacing

Range = tuple[float, float]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Guesser = Callable[[Floats, Ints], Ints]

_N_FOLDS = 5
_MIN_PER_LABEL = 5
_N_NEIGHBOURS = 3
_N_COMPONENTS = 32
# Of what is computed below: whoever changes it makes this another number, so that nothing kept is taken for it.
VERSION = 1
_THUMBNAIL_SIZE = (16, 16)

META_FEATURES: Mapping[str, tuple[Range, str]] = MappingProxyType(
    {
        "ln_n": ((0.0, math.inf), "Logarithm of the number of pictures."),
        "ln_n_labels": ((0.0, math.inf), "Logarithm of the number of labels."),
        "ln_n_per_label": ((-math.inf, math.inf), "Logarithm of the mean number of pictures per label."),
        "imbalance": ((0.0, 1.0), "1 - entropy of the label shares / ln K: 0 balanced, 1 all of one label."),
        "height": ((1.0, math.inf), "Median height in pixels."),
        "width": ((1.0, math.inf), "Median width in pixels."),
        "channels": ((1.0, 4.0), "The most common number of channels: 1 grey, 3 colour, 4 with alpha."),
        "mean_red": ((0.0, 1.0), "Mean of red (of grey where a picture has no colour), 0 black, 1 full."),
        "mean_green": ((0.0, 1.0), "Mean of green (of grey where a picture has no colour)."),
        "mean_blue": ((0.0, 1.0), "Mean of blue (of grey where a picture has no colour)."),
        "std_red": ((0.0, 0.5), "Standard deviation of red over all pixels of all pictures."),
        "std_green": ((0.0, 0.5), "Standard deviation of green over all pixels of all pictures."),
        "std_blue": ((0.0, 0.5), "Standard deviation of blue over all pixels of all pictures."),
        "difference_entropy": (
            (0.0, math.log2(511)),
            "Entropy in bits of the grey steps between neighbours.",
        ),
        "knn_accuracy": ((-1.0, 1.0), "Leave-one-out 3-nearest-neighbour accuracy, 0 = chance."),
        "logistic_accuracy": ((-1.0, 1.0), "Accuracy of 5-fold logistic regression, 0 = chance."),
    }
)
# A kilobyte each: of more, the oldest are removed.
MOST_TASKS = 1000


@dataclass(frozen=True)
class _Look:
    """What is kept of one picture.

    Attributes:
        height: In pixels.
        width: In pixels.
        n_channels: 1, 3 or 4.
        moments: Mean and mean square of red, green and blue in 0..1, shape (2, 3).
        differences: Share of each grey step from -255 to 255, shape (511,); all 0 for a single pixel.
        thumbnail: Red, green and blue in 0..1, shape (768,).
    """

    height: int
    width: int
    n_channels: int
    moments: Floats
    differences: Floats
    thumbnail: Floats


def describe_pictures(
    images: Sequence[npt.NDArray[np.uint8]],
    labels: Sequence[int],
    *,
    n_labels: int,
    seed: int = 0,
    max_pictures: int = 1000,
) -> dict[str, float]:
    """Return the meta-features of a task: every name of `META_FEATURES` with a finite number.

    Grey pictures count as colour pictures with three equal channels, so that grey and colour tasks can be
    compared; an alpha channel counts in `channels` and nowhere else. The landmarkers (`knn_accuracy`,
    `logistic_accuracy`) see 16x16 thumbnails and are corrected for chance: (a - c) / (1 - c), where c is the
    largest label share, cut off at -1. They leave out labels with a single picture, and are 0.0 where fewer
    than two labels remain or all thumbnails are equal. Where pictures have to be left out and there are more
    than `max_pictures / 5` labels, only that many labels are looked at: each keeps pictures to be known by.

    Args:
        images: uint8 arrays of shape (height, width, channels) with 1, 3 or 4 channels; sizes may differ.
            Only the drawn ones are read, so the sequence may load its pictures when asked.
        labels: Index of each picture's label, 0 <= label < n_labels.
        n_labels: Number of labels of the task, also those without a picture.
        seed: Decides which pictures are drawn.
        max_pictures: At most this many pictures are looked at, at least 2; n counts them all.

    Raises:
        PicturesError: There is no picture, a picture has another form, or the labels do not fit.
    """
    codes = _check_labels(labels, n_images=len(images), n_labels=n_labels)
    drawn = _draw(codes, max_pictures=max_pictures, seed=seed)
    looks = [_look(images[int(index)]) for index in drawn]
    thumbnails = np.stack([look.thumbnail for look in looks])
    shown, answers = _without_single_labels(thumbnails, codes[drawn])
    return {
        **_counts(codes, n_labels=n_labels),
        "height": float(statistics.median(look.height for look in looks)),
        "width": float(statistics.median(look.width for look in looks)),
        "channels": float(statistics.mode(look.n_channels for look in looks)),
        **_colours(looks),
        "difference_entropy": _entropy_bits(np.sum([look.differences for look in looks], axis=0)),
        "knn_accuracy": _above_chance(_guess_by_neighbours, shown, answers),
        "logistic_accuracy": _above_chance(_guess_by_logistic_regression, shown, answers),
    }


def _check_labels(labels: Sequence[int], *, n_images: int, n_labels: int) -> Ints:
    if n_images == 0:
        raise PicturesError("a task cannot be described without a picture")
    if len(labels) != n_images:
        raise PicturesError(f"each picture needs one label; got {n_images} pictures and {len(labels)} labels")
    codes = np.asarray(labels, dtype=np.int64)
    if codes.min() < 0 or codes.max() >= n_labels:
        raise PicturesError(
            f"labels are indices from 0 to {n_labels - 1}; got {codes.min()} to {codes.max()}",
        )
    return codes


def _draw(codes: Ints, *, max_pictures: int, seed: int) -> Ints:
    """Return sorted indices of at most `max_pictures` pictures, each label with its share of them."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(codes))
    if len(order) <= max_pictures:
        return np.sort(order)
    present = rng.permutation(np.unique(codes))[: max(2, max_pictures // _N_FOLDS)]
    return take_shares(order[np.isin(codes[order], present)], codes, max_pictures)


def take_shares(order: Ints, codes: Ints, n: int) -> Ints:
    """Return the first n pictures of an order, each label with its share of them.

    Args:
        order: Indices of pictures, all different.
        codes: The label of every picture.
        n: At least 0.

    Returns:
        Sorted indices, at most n.
    """
    # The i-th of a label's m pictures stands at (i + 1/2) / m: a cut anywhere keeps the labels' shares.
    places = np.empty(len(order))
    for code in np.unique(codes[order]):
        of_label = codes[order] == code
        m = np.count_nonzero(of_label)
        places[of_label] = (np.arange(m) + 0.5) / m
    return np.sort(order[np.argsort(places, kind="stable")[:n]])


def _look(image: npt.NDArray[np.uint8]) -> _Look:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise PicturesError(
            "a picture is a uint8 array of shape (height, width, channels) with 1, 3 or 4 channels; "
            f"got {image.dtype} of shape {image.shape}"
        )
    height, width, n_channels = image.shape
    pixels = image[:, :, 0] if n_channels == 1 else image[:, :, :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    colour = picture.convert("RGB")
    levels = np.arange(256) / 255
    shares = np.reshape(colour.histogram(), (3, 256)) / (height * width)
    thumbnail = colour.resize(_THUMBNAIL_SIZE, Image.Resampling.BOX)
    return _Look(
        height=height,
        width=width,
        n_channels=n_channels,
        moments=np.stack([shares @ levels, shares @ levels**2]),
        differences=_difference_shares(np.asarray(picture.convert("L"))),
        thumbnail=np.asarray(thumbnail, dtype=np.float64).ravel() / 255,
    )


def _difference_shares(grey: npt.NDArray[np.uint8]) -> Floats:
    signed = grey.astype(np.int16)
    steps = np.concatenate([np.diff(signed, axis=0).ravel(), np.diff(signed, axis=1).ravel()])
    counts: Floats = np.bincount(steps + 255, minlength=511).astype(np.float64)
    return counts / max(1, steps.size)


def _counts(codes: Ints, *, n_labels: int) -> dict[str, float]:
    n = len(codes)
    entropy_bits = _entropy_bits(np.bincount(codes, minlength=n_labels).astype(np.float64))
    evenness = entropy_bits / math.log2(n_labels) if n_labels > 1 else 1.0
    return {
        "ln_n": math.log(n),
        "ln_n_labels": math.log(n_labels),
        "ln_n_per_label": math.log(n / n_labels),
        "imbalance": min(1.0, max(0.0, 1.0 - evenness)),
    }


def _colours(looks: Sequence[_Look]) -> dict[str, float]:
    means, squares = np.mean([look.moments for look in looks], axis=0)
    stds = np.sqrt(np.maximum(squares - means**2, 0.0))
    names = ("red", "green", "blue")
    return {
        **{f"mean_{name}": float(mean) for name, mean in zip(names, means, strict=True)},
        **{f"std_{name}": float(std) for name, std in zip(names, stds, strict=True)},
    }


def _entropy_bits(weights: Floats) -> float:
    """Return Shannon's entropy -sum(p log2 p) of weights that need not sum to 1; 0.0 for no weight at all."""
    positive = weights[weights > 0]
    if len(positive) < 2:
        return 0.0
    shares = positive / positive.sum()
    return float(-np.sum(shares * np.log2(shares)))


def _without_single_labels(thumbnails: Floats, codes: Ints) -> tuple[Floats, Ints]:
    keep = np.bincount(codes)[codes] >= 2
    return thumbnails[keep], codes[keep]


def _above_chance(guess: _Guesser, thumbnails: Floats, codes: Ints) -> float:
    if len(np.unique(codes)) < 2 or not np.ptp(thumbnails, axis=0).any():
        return 0.0
    accuracy = float(np.mean(guess(thumbnails, codes) == codes))
    chance = float(np.bincount(codes).max() / len(codes))
    return max(-1.0, (accuracy - chance) / (1.0 - chance))


def _guess_by_neighbours(thumbnails: Floats, codes: Ints) -> Ints:
    """Return for each picture the label that most of its 3 nearest others have; a tie goes to the lowest."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=_N_NEIGHBOURS, algorithm="brute").fit(thumbnails)
    neighbours = codes[search.kneighbors(return_distance=False)]
    votes = (neighbours[:, :, None] == neighbours[:, None, :]).sum(axis=2)
    n_codes = int(codes.max()) + 1
    winners: Ints = neighbours[np.arange(len(codes)), np.argmax(votes * n_codes - neighbours, axis=1)]
    return winners


def _guess_by_logistic_regression(thumbnails: Floats, codes: Ints) -> Ints:
    """Return for each picture the label that a model fitted on the other four folds gives it.

    The pictures of a label go round the folds in turn, so that a label with two pictures is in every fit.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    components = _principal_components(thumbnails)
    folds = np.empty(len(codes), dtype=np.int64)
    folds[np.argsort(codes, kind="stable")] = np.arange(len(codes)) % _N_FOLDS
    guesses = np.empty_like(codes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for fold in np.unique(folds):
            model = LogisticRegression(max_iter=50, tol=1e-2)
            model.fit(components[folds != fold], codes[folds != fold])
            guesses[folds == fold] = model.predict(components[folds == fold])
    return guesses


def _principal_components(thumbnails: Floats) -> Floats:
    """Return at most 32 principal components, shape (n, 32), scaled to a mean variance of 1.

    They make the fit about 20 times cheaper than 768 colours do. No label is seen here.
    """
    centred = thumbnails - thumbnails.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    components: Floats = centred @ vectors[:, -_N_COMPONENTS:]
    scale = math.sqrt(float(np.mean(components**2)))
    return components / scale if scale > 1e-9 else np.zeros_like(components)


def remember_features(described: object, compute: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Return the meta-features of a task, computed only where this machine has not done so before.

    What cannot be read or written is computed, and costs nothing but time.

    Args:
        described: All that the meta-features depend on, plain JSON: digests and labels of the pictures, operations.
        compute: Computes them.
    """
    text = json.dumps([VERSION, described], sort_keys=True)
    file = feature_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept.keys() == META_FEATURES.keys() and all(map(_is_number, kept.values())):
            return kept
    features = dict(compute())
    with contextlib.suppress(OSError):
        _write(file, json.dumps(features))
    return features


def feature_folder() -> Path:
    """Return the folder of the kept meta-features, beside that of the kept pictures."""
    return cache_folder() / "tasks"


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all, and remove the oldest of too many."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        stream.write(text.encode())
    kept = list(file.parent.glob("*.json"))
    if len(kept) > MOST_TASKS:
        for old in sorted(kept, key=lambda one: one.stat().st_mtime)[: len(kept) - MOST_TASKS]:
            old.unlink(missing_ok=True)
