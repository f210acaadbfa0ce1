"""Which pictures are for the test and for validation, where their source does not say: a stratified draw by content.

The rule: within each label, pictures are ordered by `content_share`, a number in [0, 1) that the SHA-256 of their bytes
decides. Those below the wanted share are taken; then, only where that would miss the label's share by more than one
picture (or take nothing of a label that has at least `ENOUGH` pictures, or leave nothing to train on), the next in this
order are taken too, or the last ones left. So the draw depends neither on names nor on the order of files; adding
pictures moves others only where a share would be missed without; and a label never loses its last training picture.

Pictures of equal content, and those of one group (a patient, say), are drawn as one. Where such a unit has several
labels, it is drawn with the rarest of them, and counts in the shares of all.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Part: TypeAlias = Literal["train", "validation", "test"]

# A label with so many pictures has one in every part.
ENOUGH = 5


class Drawn(NamedTuple):
    """What a draw knows of a picture: its label's name, the SHA-256 (hex) of its content, its group or ``""``."""

    label: str
    digest: str
    group: str = ""


@dataclass
class _Unit:
    key: str
    counts: Counter[str] = field(default_factory=Counter)
    part: Part = "train"


def content_share(digest: str, salt: str) -> float:
    """Return a number in [0, 1) that a picture's content and a salt decide, evenly spread."""
    value = hashlib.sha256(f"{salt}:{digest}".encode()).digest()
    return int.from_bytes(value[:8]) / 2**64


def draw_parts(pictures: Sequence[Drawn], shares: Mapping[Part, float]) -> list[Part]:
    """Return the part of each picture by the rule above.

    Args:
        pictures: Those whose part is to be drawn.
        shares: The parts beside training, each with its share, 0 to 1, of what the parts before it left.
    """
    units = _join_units(pictures)
    by_label: dict[str, list[_Unit]] = defaultdict(list)
    for unit in {id(unit): unit for unit in units}.values():
        for label in unit.counts:
            by_label[label].append(unit)
    wanted = [(part, share) for part, share in shares.items() if share > 0]
    sizes = Counter(picture.label for picture in pictures)
    for number, (part, share) in enumerate(wanted):
        decided: set[int] = set()
        for label in sorted(by_label, key=lambda name: (sizes[name], name)):
            # One unit stays for training, and one for each part that is still to come.
            spare = 1 + (len(wanted) - number - 1) * (sizes[label] >= ENOUGH)
            _draw_label(label, by_label[label], part, share, spare=spare, decided=decided)
    return [unit.part for unit in units]


def _join_units(pictures: Sequence[Drawn]) -> list[_Unit]:
    """Return the unit of each picture: what has one content or one group, also by way of others, is one."""
    parents: dict[str, str] = {}

    def find(key: str) -> str:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for picture in pictures:
        ends = sorted((find(picture.digest), find(f"group {picture.group}" if picture.group else picture.digest)))
        # The name of a group comes last in the alphabet of digests, and names its unit: it outlives every picture.
        parents[ends[0]] = ends[1]
    units: dict[str, _Unit] = {}
    joined = []
    for picture in pictures:
        unit = units.setdefault(find(picture.digest), _Unit(find(picture.digest)))
        unit.counts[picture.label] += 1
        joined.append(unit)
    return joined


def _draw_label(label: str, units: Sequence[_Unit], part: Part, share: float, *, spare: int, decided: set[int]) -> None:
    """Give the units of a label that stay or become a part; those that another label has decided stay as they are."""
    open_units = [unit for unit in units if unit.part in ("train", part)]
    n = sum(unit.counts[label] for unit in open_units)
    low = max(math.ceil(n * share - 1), int(sum(unit.counts[label] for unit in units) >= ENOUGH))
    high = math.floor(n * share + 1)
    taken = sum(unit.counts[label] for unit in open_units if unit.part == part)
    n_left = sum(unit.part == "train" for unit in open_units)
    undecided = [(content_share(unit.key, part), unit) for unit in open_units if id(unit) not in decided]
    ordered = sorted(undecided, key=lambda pair: (pair[0], pair[1].key))
    n_units = sum(drawn < share for drawn, _ in ordered)
    sums = [taken]
    for _, unit in ordered:
        sums.append(sums[-1] + unit.counts[label])
    while n_units < len(ordered) and sums[n_units] < low:
        n_units += 1
    while n_units and sums[n_units] > high and sums[n_units - 1] >= low:
        n_units -= 1
    n_units = max(min(n_units, n_left - spare), 0)
    for position, (_, unit) in enumerate(ordered):
        unit.part = part if position < n_units else unit.part
        decided.add(id(unit))
