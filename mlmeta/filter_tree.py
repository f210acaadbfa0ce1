"""A filter as a tree, and the error that points into its text."""

from __future__ import annotations

from dataclasses import dataclass

from mlmeta.errors import BadInputError

_SHOWN = 100


class FilterError(BadInputError):
    """A filter, an order or a list of columns cannot be understood, or asks what the columns do not hold."""

    def __init__(self, message: str, text: str, position: int, *, what: str = "filter") -> None:
        """Make a message that points into the text.

        Args:
            message: What is wrong and what is allowed.
            text: The whole filter.
            position: Index of the character at which the fault starts; the end of the text is allowed.
            what: What the text is.
        """
        self.position = position
        start = max(0, position - _SHOWN // 2) if len(text) > _SHOWN else 0
        part = "".join(c if c.isprintable() else " " for c in text[start : start + _SHOWN])
        pointed = f"  {part}\n  {' ' * (position - start)}^"
        super().__init__(f"{what}, character {position + 1}: {message}\n{pointed}")


@dataclass(frozen=True)
class Column:
    """A column as it was written, quotes removed: ``params.optimizer.lr``, ``accuracy``."""

    name: str
    position: int = 0


@dataclass(frozen=True)
class Literal:
    """A value that was written out; numbers are int or float, text str."""

    value: bool | int | float | str
    position: int = 0


@dataclass(frozen=True)
class Comparison:
    """``column operator value``; the operator is one of = != < <= > >=."""

    column: Column
    operator: str
    value: Literal | Column


@dataclass(frozen=True)
class Membership:
    """``column IN (values)``."""

    column: Column
    values: tuple[Literal, ...]


@dataclass(frozen=True)
class Like:
    """``column LIKE pattern``: % stands for any characters, _ for one; a backslash takes that away."""

    column: Column
    pattern: Literal
    ignore_case: bool


@dataclass(frozen=True)
class Missing:
    """``column IS NULL``."""

    column: Column


@dataclass(frozen=True)
class Not:
    """What does not hold."""

    condition: Condition


@dataclass(frozen=True)
class And:
    """All of at least two conditions hold."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Or:
    """One of at least two conditions holds."""

    conditions: tuple[Condition, ...]


Condition = Comparison | Membership | Like | Missing | Not | And | Or


@dataclass(frozen=True)
class Order:
    """One column to sort by."""

    column: Column
    descending: bool


def list_columns(condition: Condition | None) -> tuple[Column, ...]:
    """Return the columns that a filter names, in its order."""
    match condition:
        case None:
            return ()
        case And(conditions) | Or(conditions):
            return tuple(column for part in conditions for column in list_columns(part))
        case Not(inner):
            return list_columns(inner)
        case Comparison(column, _, Column() as other):
            return column, other
        case _:
            return (condition.column,)
