"""The account of the data: everything that was looked at is used, or left out for one of a closed set of reasons.

A source (`mlmeta.data.folders`, `mlmeta.data.manifests`, …) gives an `Item` for each file, folder, column and row that
it saw; what is below a folder that was left out was not looked at. `Account` holds them all, with the warnings that
they give rise to, most serious first, and writes both for people.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal, NamedTuple, TypeAlias

from mlmeta.commands.documents import strip_operators
from mlmeta.data.splits import ENOUGH, Part
from mlmeta.errors import PicturesError

Kind: TypeAlias = Literal["file", "row", "picture", "folder", "column"]

# More than this share of bad pictures is a fault of the data, not of a picture.
MAX_BAD_SHARE = 0.2
# A label so many times as large as another is warned of.
IMBALANCE = 10
_PARTS: tuple[Part, ...] = ("train", "validation", "test")
# What a cell of several labels would have between them.
_BETWEEN = re.compile(r"[\s,;|/+&]+")


class Reason(StrEnum):
    """Why something was left out; the words for people."""

    DAMAGED = "damaged"
    NOT_A_PICTURE = "not a picture"
    FORMAT = "of a format that is not read"
    SUFFIX = "a picture by content, without a suffix of one"
    REFUSED = "refused by an operation"
    UNREADABLE = "not to be opened"
    NO_LABEL = "without a label"
    OTHER_LABEL = "of a label that is not asked for"
    NO_PART = "in a folder that is no known part"
    NOT_TESTED = "not in the test part"
    HIDDEN = "hidden"
    LINK = "a link that is not followed"
    EMPTY = "empty"
    COLUMN = "not read"


class Rank(IntEnum):
    """How serious a warning is; the first are told first."""

    LEAK = 0
    CONFLICT = 1
    LABEL_LOST = 2
    NOT_READ = 3
    UNTESTED = 4
    NAMES = 5
    PIXELS = 6
    BALANCE = 7


class Warned(NamedTuple):
    """One warning: how serious, and the sentence."""

    rank: Rank
    text: str


@dataclass(frozen=True)
class Item:
    """Something that was looked at.

    Attributes:
        kind: What it is; a picture that is a file is a ``file``, one that a table lists is a ``row``.
        name: Its id, path below the folder, or name.
        reason: Why it was left out; None if it is used.
        label: The label that it is used for, or stands under.
        part: The part that it is used for.
        detail: More about the reason, or about the use.
        bad: Whether it was meant to be a picture of the task and cannot be; too many are an error.
    """

    kind: Kind
    name: str
    reason: Reason | None = None
    label: str = ""
    part: str = ""
    detail: str = ""
    bad: bool = False


def explain_bad(items: Sequence[Item], n_pictures: int) -> PicturesError:
    """Return the error for too many bad pictures: of how many, why, and an example of each reason."""
    reasons = Counter(item.reason for item in items)
    examples = {item.reason: f"{item.name}: {item.detail}".removesuffix(": ") for item in reversed(items)}
    shown = "; ".join(f"{n:,} {reason}, such as {examples[reason]}" for reason, n in reasons.most_common())
    return PicturesError(
        f"data: {len(items):,} of {n_pictures:,} pictures cannot be used, and at most {MAX_BAD_SHARE:.0%} may be left "
        f"out: {shown}"
    )


def check_bad(items: Iterable[Item], n_used: int) -> None:
    """Refuse data of which more than the allowed share is bad.

    Raises:
        PicturesError: If it is.
    """
    bad = [item for item in items if item.bad]
    if len(bad) > MAX_BAD_SHARE * (n_used + len(bad)):
        raise explain_bad(bad, n_used + len(bad))


@dataclass(frozen=True)
class Account:
    """What became of everything that was looked at.

    Attributes:
        label_names: The labels of the task.
        items: Everything, each once.
        warnings: Most serious first.
        origin: Where the pictures come from, and how their parts came about, in words.
        notices: What was done to pictures that are used, in words.
    """

    label_names: tuple[str, ...]
    items: tuple[Item, ...]
    warnings: tuple[Warned, ...]
    origin: str
    notices: tuple[str, ...] = ()

    @property
    def pictures(self) -> list[Item]:
        """What is used as a picture."""
        return [item for item in self.items if item.reason is None and item.kind not in ("folder", "column")]

    @property
    def left_out(self) -> list[Item]:
        """All that is not used."""
        return [item for item in self.items if item.reason is not None]

    def count_parts(self) -> dict[str, int]:
        """Return how many pictures each part has."""
        counts = Counter(item.part for item in self.pictures)
        return {part: counts[part] for part in _PARTS}

    def describe(self) -> list[str]:
        """Return two or three lines for people, without the warnings."""
        n = self.count_parts()
        lines = [
            f"{len(self.label_names)} labels; {n['train']:,} training, {n['validation']:,} validation, {n['test']:,} "
            f"test pictures{_describe_left_out(self.left_out)}",
            f"from {self.origin}",
        ]
        return lines + (["; ".join(self.notices)] if self.notices else [])

    def describe_all(self) -> str:
        """Return the lines and, beneath, the warnings."""
        return "\n".join([*self.describe(), *(f"warning: {warned.text}" for warned in self.warnings)])

    def params(self) -> dict[str, int]:
        """Return the figures that a run records."""
        return {
            "seen": len(self.items),
            "used": len(self.items) - len(self.left_out),
            "left_out": len(self.left_out),
            "warnings": len(self.warnings),
        }

    def rows(self) -> Iterator[list[str]]:
        """Yield the table ``data_account.csv``, its header first."""
        yield ["kind", "name", "use", "label", "part", "reason", "detail"]
        for item in self.items:
            use = "left out" if item.reason else "used"
            yield [item.kind, item.name, use, item.label, item.part, item.reason or "", item.detail]


def _describe_left_out(items: Sequence[Item]) -> str:
    """Return ``; 3 left out: 2 damaged, 1 not a picture``, folders and columns with their kind."""
    if not items:
        return ""
    counts = Counter((item.kind if item.kind in ("folder", "column") else "", item.reason) for item in items)
    words = [f"{n:,} {kind}{'s' if n > 1 else ''} {reason}" if kind else f"{n:,} {reason}"
             for (kind, reason), n in counts.most_common()]  # fmt: skip
    return f"; {len(items):,} left out: {', '.join(words)}"


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names in quotes, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(repr(name if len(name) <= 120 else name[:119] + "…") for name in names[:limit]) + more


def find_warnings(
    items: Sequence[Item], label_names: Sequence[str], *, digests: Mapping[str, str], training: bool
) -> list[Warned]:
    """Return what is to be said of the items, most serious first.

    Args:
        items: Everything that was looked at.
        label_names: The labels of the task.
        digests: The SHA-256 (hex) of the content of each used picture, by its name.
        training: Whether it is to be trained on: then every part counts, else the test part only.
    """
    pictures = [item for item in items if item.reason is None and item.kind not in ("folder", "column")]
    found = [
        *_warn_equal(pictures, digests), *_warn_lost(items, pictures), *_warn_not_read(items),
        *_warn_names(label_names),
        *(_warn_few(pictures, label_names) if training else ()),
    ]  # fmt: skip
    return sorted(found, key=lambda warned: warned.rank)


def _warn_equal(pictures: Sequence[Item], digests: Mapping[str, str]) -> Iterator[Warned]:
    groups = defaultdict(list)
    for item in pictures:
        groups[digests[item.name]].append(item)
    equal = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in equal if len({item.part for item in group}) > 1]
    if leaks:
        names = name_some([" = ".join(item.name for item in group[:2]) for group in leaks], 3)
        yield Warned(Rank.LEAK, f"{len(leaks):,} picture(s) stand in more than one part, equal by content: {names}")
    conflicts = [group for group in equal if len({item.label for item in group}) > 1]
    if conflicts:
        names = name_some([" = ".join(item.name for item in group[:2]) for group in conflicts], 3)
        yield Warned(
            Rank.CONFLICT,
            f"{len(conflicts):,} picture(s) stand under more than one label (conflicting_pictures.csv): {names}",
        )


def _warn_lost(items: Sequence[Item], pictures: Sequence[Item]) -> Iterator[Warned]:
    """Warn of labels' folders that give no picture at all."""
    there = {item.label for item in pictures}
    lost = dict.fromkeys(item.label for item in items if item.kind == "folder" and item.label and not item.reason)
    for label in lost:
        if label not in there:
            inside = [item for item in items if item.label == label and item.reason]
            words = f": {_describe_left_out(inside)[2:]}" if inside else "; it is empty"
            yield Warned(Rank.LABEL_LOST, f"the label folder {label!r} holds no readable picture{words}")


def _warn_not_read(items: Sequence[Item]) -> Iterator[Warned]:
    by_reason = defaultdict(list)
    for item in items:
        if item.reason:
            by_reason[item.reason].append(item)
    for item in by_reason[Reason.NO_PART]:
        yield Warned(Rank.NOT_READ, f"the folder {item.name!r} stands beside the parts and is none: {item.detail}")
    for reason, words in (
        (Reason.SUFFIX, "have another suffix than pictures have; rename them to have them read"),
        (Reason.NO_LABEL, "lie outside the labels' folders"),
    ):
        if names := [item.name for item in by_reason[reason]]:
            yield Warned(Rank.NOT_READ, f"{len(names):,} picture(s) {words}: {name_some(names, 3)}")
    if names := [f"{item.name} ({item.detail})" for item in by_reason[Reason.FORMAT]]:
        yield Warned(Rank.NOT_READ, f"{len(names):,} file(s) of a format that is not read: {name_some(names, 3)}")
    bad = [item for reason in (Reason.DAMAGED, Reason.REFUSED, Reason.UNREADABLE) for item in by_reason[reason]]
    bad += [item for item in by_reason[Reason.NOT_A_PICTURE] if item.bad]
    if bad:
        names = [f"{item.name}: {item.detail}" if item.detail else item.name for item in bad]
        yield Warned(Rank.NOT_READ, f"{len(bad):,} picture(s) cannot be used: {name_some(names, 3)}")


def _warn_names(label_names: Sequence[str]) -> Iterator[Warned]:
    folded = defaultdict(list)
    for label in label_names:
        folded[_fold(strip_operators(label))].append(label)
    for same in folded.values():
        if len(same) > 1 and len({strip_operators(label) for label in same}) > 1:
            yield Warned(Rank.NAMES, f"the labels {name_some(same)} differ only by case, blanks or accents")
    known = set(label_names)
    joined = [
        label for label in label_names
        if len(words := _BETWEEN.split(label)) > 1 and all(word in known for word in words)
    ]  # fmt: skip
    if joined:
        several = f"the label(s) {name_some(joined)} read like several labels"
        yield Warned(Rank.NAMES, f"{several}; a picture has one, so each of these stays a label of its own")


def _fold(text: str) -> str:
    """Return a text without case, blanks, accents, dashes and underscores."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c) and not c.isspace() and c not in "_-")


def _warn_few(pictures: Sequence[Item], label_names: Sequence[str]) -> Iterator[Warned]:
    counts = {part: Counter(item.label for item in pictures if item.part == part) for part in _PARTS}
    for part in ("test", "validation"):
        if not counts[part]:
            continue
        if none := [label for label in label_names if not counts[part][label]]:
            yield Warned(Rank.UNTESTED, f"{len(none):,} label(s) have no {part} picture: {name_some(none)}")
        few = [f"{label} ({counts[part][label]})" for label in label_names if 0 < counts[part][label] < ENOUGH]
        if few:
            words = f"{len(few):,} label(s) have fewer than {ENOUGH} {part} pictures: {name_some(few)}"
            yield Warned(Rank.UNTESTED, words)
    trained = [(counts["train"][label], label) for label in label_names if counts["train"][label]]
    if trained and max(trained)[0] >= IMBALANCE * min(trained)[0]:
        (least, small), (most, large) = min(trained), max(trained)
        yield Warned(
            Rank.BALANCE, f"the label {large!r} has {most:,} training pictures, {small!r} has {least:,}: "
            "an accuracy says little of the small one; look at macro_f1",
        )  # fmt: skip
