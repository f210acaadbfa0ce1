"""The search space: which values of the commands may be tried, as they say themselves or as the history suggests.

In a document it is ``{"optimizer.lr": {"low": 1e-4, "high": 0.1, "log": true}, "batch_size": {"choices": [16, 32]}}``:
a key is the path of a value among `TRAINING_KEYS`, or one of these itself. What it does not name stays as the commands
say, unless it has ``"*": "open"``. A training is a dict with values of `TRAINING_KEYS`; nothing here changes the one
that is given.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mlmeta.commands import catalog, validation
from mlmeta.commands.catalog import read_value
from mlmeta.errors import Fault, shorten

if TYPE_CHECKING:
    import numpy as np


TRAINING_KEYS = ("model", "optimizer", "scheduler", "criterion", "batch_size")
REST, OPEN = "*", "open"
MAX_PATHS = 100
MAX_CHOICES = 100
_RANGE_KEYS = ("low", "high", "log")
_ALLOWED = 'must be {"low": …, "high": …}, with "log": true for a logarithmic scale, or {"choices": […]}'
# Those of the keys whose values have names and arguments in the catalog.
_NAMED_KEYS = ("optimizer", "scheduler", "criterion")


@dataclass(frozen=True)
class Range:
    """All numbers from low to high, whole ones only where both ends are, on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        plain = read_value(value)
        if isinstance(plain, bool) or not isinstance(plain, int | float):
            return False
        return self.low <= plain <= self.high and (not self.whole or float(plain).is_integer())

    def draw(self, rng: np.random.Generator) -> float:
        """Return a value, each as likely as any other on the range's scale."""
        if self.log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        elif self.whole:
            return int(rng.integers(int(self.low), int(self.high), endpoint=True))
        else:
            drawn = float(rng.uniform(self.low, self.high))
        drawn = round(drawn) if self.whole else float(f"{drawn:.3g}")
        return min(max(drawn, self.low), self.high)


@dataclass(frozen=True)
class Choices:
    """Some values."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of them."""
        return any(read_value(value) == read_value(one) for one in self.values)

    def draw(self, rng: np.random.Generator) -> Any:
        """Return one of them, each as likely as any other."""
        return copy.deepcopy(self.values[int(rng.integers(len(self.values)))])


Space: TypeAlias = Mapping[str, Range | Choices]


def check_space(document: object) -> Iterator[validation.Located]:
    """Check a space by itself: its paths, and that every range can be drawn from."""
    if document is None:
        return
    if not isinstance(document, Mapping) or not document:
        message = 'must be an object such as {"optimizer.lr": {"low": 1e-4, "high": 0.1, "log": true}}'
        yield (), Fault("", message, came=shorten(document))
        return
    if len(document) > MAX_PATHS:
        yield (), Fault("", f"there may be at most {MAX_PATHS} paths", came=f"{len(document):,}")
        return
    for path, part in document.items():
        if path == REST:
            if part != OPEN:
                yield (path,), Fault("", f'must be "{OPEN}", or be left out', came=shorten(part))
        elif str(path).partition(".")[0] not in TRAINING_KEYS:
            known = ", ".join(TRAINING_KEYS)
            yield (path,), Fault("", f'must be a path that begins with one of {known}, or "{REST}" for all others')
        elif isinstance(part, Mapping) and part.keys() == {"choices"}:
            yield from _check_choices(path, part["choices"])
        elif isinstance(part, Mapping) and {"low", "high"} <= part.keys() <= set(_RANGE_KEYS):
            yield from _check_range(path, part)
        else:
            yield (path,), Fault("", _ALLOWED, came=shorten(part))


def _check_choices(path: str, choices: object) -> Iterator[validation.Located]:
    if not isinstance(choices, list) or not 1 <= len(choices) <= MAX_CHOICES:
        yield (path, "choices"), Fault("", f"must be a list of 1 to {MAX_CHOICES} values", came=shorten(choices))


def _check_range(path: str, part: Mapping[str, Any]) -> Iterator[validation.Located]:
    ends = {}
    for key in ("low", "high"):
        value = part[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield (path, key), Fault("", "must be a finite number", came=shorten(value))
        elif abs(value) > validation.MAX_INTEGER:
            yield (path, key), Fault("", f"must be at most {validation.MAX_INTEGER:,} either way", came=shorten(value))
        else:
            ends[key] = value
    if not isinstance(part.get("log", False), bool):
        yield (path, "log"), Fault("", "must be true or false", came=shorten(part["log"]))
    if len(ends) == 2 and ends["low"] > ends["high"]:
        yield (path,), Fault("", f"low must not be above high; low is {ends['low']:g}, high is {ends['high']:g}")
    elif part.get("log") is True and ends.get("low", 1) <= 0:
        yield (path, "low"), Fault("", "must be above 0 on a logarithmic scale", came=shorten(ends["low"]))


def check_space_fits(document: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[validation.Located]:
    """Check that the ends and choices of a space without faults of its own can stand in the training beside it.

    A part that the training lacks is not looked at.
    """
    space = read_space(document)
    for path, values in space.items():
        key = path.partition(".")[0]
        if key not in training:
            continue
        ends = (values.low, values.high) if isinstance(values, Range) else values.values
        if path == key and (names := _find_names(space, key)):
            strange = [value for value in ends if not names.holds(_read_name(value))]
            if strange:
                yield (path,), Fault("", f"{shorten(strange[0])} is none of the names that {key}.name may have")
                continue
        for value in ends:
            faults = [_find_fault(base, path, value) for base in _bases(space, training, key)]
            if all(faults):
                yield (path,), Fault("", f"{shorten(value)} cannot stand there: {faults[0]}")
                break


def _find_names(space: Space, key: str) -> Choices | None:
    names = space.get(f"{key}.name")
    return names if isinstance(names, Choices) else None


def _read_name(part: Any) -> Any:
    return part.get("name") if isinstance(part, Mapping) else None


def _bases(space: Space, training: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    """Yield the trainings that a value of a part can get into: with each whole part and each name that it may have."""
    whole, names = space.get(key), _find_names(space, key)
    for part in whole.values if isinstance(whole, Choices) else (training[key],):
        base = {**training, key: part}
        if names is None:
            yield base
        else:
            yield from (base if _read_name(part) == name else _rename(base, key, name) for name in names.values)


def _find_fault(training: Mapping[str, Any], path: str, value: Any) -> str:
    """Return in words what is wrong with a training in which a value is put; nothing if nothing is."""
    key = path.partition(".")[0]
    if path == f"{key}.name":
        changed: dict[str, Any] | None = _rename(training, key, value)
    else:
        changed = put_value(training, path, value)
    if changed is None:
        return f"the commands have no {path}"
    located = [*validation.check_plain(changed[key])] or [*_check_part(key, changed[key])]
    return located[0][1].message if located else ""


def _check_part(key: str, part: Any) -> Iterator[validation.Located]:
    if key == "batch_size":
        if isinstance(part, bool) or not isinstance(part, int) or part < 1:
            yield (), Fault("", "must be a whole number of 1 or above")
    elif key == "model":
        yield from validation.check_model(part)
    elif key == "optimizer":
        yield from validation.check_optimizer(part)
    elif key == "criterion":
        yield from validation.check_named(key, part)
    elif part is not None:
        yield from validation.check_scheduler(part)


def read_space(document: Mapping[str, Any]) -> Space:
    """Return the space that a document without faults describes; see `is_open` for what it does not name."""
    return {
        path: Choices(tuple(part["choices"])) if "choices" in part
        else Range(part["low"], part["high"], bool(part.get("log", False)))
        for path, part in document.items() if path != REST
    }  # fmt: skip


def is_open(document: Mapping[str, Any] | None) -> bool:
    """Return whether what a document does not name may be tried too: it says so, or there is none."""
    return not document or document.get(REST) == OPEN


def get_value(training: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """Return whether a training has a value at a path, and the value."""
    here: Any = training
    for part in path.split("."):
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, Sequence) and not isinstance(here, str) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        else:
            return False, None
    return True, here


def put_value(training: Mapping[str, Any], path: str, value: Any) -> dict[str, Any] | None:
    """Return a training with a value at a path; None where what should hold the value is not there."""
    changed = copy.deepcopy(dict(training))
    above, _, last = path.rpartition(".")
    found, holder = get_value(changed, above) if above else (True, changed)
    if found and isinstance(holder, dict):
        holder[last] = value
    elif found and isinstance(holder, list) and last.isdigit() and int(last) < len(holder):
        holder[int(last)] = value
    else:
        return None
    return changed


def _rename(training: Mapping[str, Any], key: str, name: Any) -> dict[str, Any]:
    """Return a training with another optimizer, scheduler or criterion, which keeps the arguments that it knows."""
    given = training[key] if isinstance(training.get(key), Mapping) else {}
    known = _list_arguments(key, name)
    kept = {argument: value for argument, value in given.items() if argument in known}
    return {**copy.deepcopy(dict(training)), key: {"name": name, **copy.deepcopy(kept)}}


def _list_arguments(key: str, name: Any) -> frozenset[str]:
    if key not in _NAMED_KEYS or not isinstance(name, str) or name not in catalog.list_names(key):
        return frozenset()
    return frozenset(catalog.find_entry(key, name).arguments)


def _is_known(training: Mapping[str, Any], path: str) -> bool:
    """Return whether a training may have a value at a path: SGD has a momentum, Adam none."""
    key, _, rest = path.partition(".")
    if key not in _NAMED_KEYS or not rest:
        return True
    part = training.get(key)
    return isinstance(part, Mapping) and rest.partition(".")[0] in _list_arguments(key, part.get("name"))


def can_have(training: Mapping[str, Any], path: str) -> bool:
    """Return whether a training can have a value at a path: Adam no momentum, a model of two layers none in a third."""
    return _is_known(training, path) and put_value(training, path, None) is not None


def order_paths(space: Space) -> list[str]:
    """Return the paths of a space, whole parts and names before what depends on them."""
    return sorted(space, key=lambda path: (path.count("."), not path.endswith(".name")))


def fill_training(space: Space, training: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training with values for paths of the space; what it cannot have (Adam a momentum) is left out."""
    filled = copy.deepcopy(dict(training))
    for path in order_paths(space):
        if path in values:
            filled = set_value(filled, path, values[path])
    return filled


def draw_training(space: Space, training: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return a training with every value of the space drawn; see `fill_training`."""
    return fill_training(space, training, {path: one.draw(rng) for path, one in space.items()})


def set_value(training: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a training with a value at a path; the same where it cannot have it."""
    key, _, rest = path.partition(".")
    if key in _NAMED_KEYS and rest == "name":
        _, name = get_value(training, path)
        return dict(training) if name == value else _rename(training, key, value)
    return (put_value(training, path, value) if _is_known(training, path) else None) or dict(training)


def fit_training(space: Space, training: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
    """Return a training with values outside the space drawn anew; None where another name or part is asked for."""
    fitted = copy.deepcopy(dict(training))
    for path in order_paths(space):
        key, _, rest = path.partition(".")
        found, value = get_value(fitted, path)
        if found and space[path].holds(value):
            continue
        if rest == "name" or (not rest and key != "batch_size"):
            return None
        fitted = set_value(fitted, path, space[path].draw(rng))
    return fitted
