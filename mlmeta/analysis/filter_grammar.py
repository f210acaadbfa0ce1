r"""The filter language as text: tokens, grammar, and the faults of what does not follow it.

It is MLflow's search syntax with numbers, OR and parentheses added::

    filter     = conjunction {OR conjunction}
    conjunction = negation {AND negation}
    negation   = NOT negation | "(" filter ")" | condition
    condition  = column ( operator (value | column)       operator: = == != <> < <= > >=
                        | [NOT] IN "(" value {"," value} ")"
                        | [NOT] LIKE text | [NOT] ILIKE text
                        | [NOT] BETWEEN value AND value
                        | IS [NOT] NULL )
    column     = name of letters, digits and _ . - / :   or `any name`, also after a prefix: tags.`any key`
    value      = 'text' | "text" | number | true | false

A doubled quote stands for one inside quotes. In front of an operator double quotes hold a column, after it a
text, as in MLflow. Words of the language may be written in any case.

`parse_filter` makes a tree of it; `FilterError` points into the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from mlmeta.errors import BadInputError, shorten

_Item = TypeVar("_Item")

MAX_LENGTH = 10_000
MAX_DEPTH = 100
_MAX_WHOLE_DIGITS = 18
OPERATORS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_WORDS = {"AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "IS", "NULL", "BETWEEN", "TRUE", "FALSE", "ASC", "DESC"}
# Possessive quantifiers: a hostile text costs no more than its length.
_TOKEN = re.compile(
    r"""(?P<space>\s++)
    | (?P<number>[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![\w.]))
    | (?P<operator><=|>=|<>|!=|==|[=<>])
    | (?P<mark>[(),])
    | (?P<single>'(?:[^']++|'')*+')
    | (?P<name>(?:\w++(?:[.\-/:]\w++)*+\.)?(?:`(?:[^`]++|``)*+`|"(?:[^"]++|"")*+")|\w++(?:[.\-/:]\w++)*+)
    """,
    re.VERBOSE,
)
_SHOWN = 100


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def word(self) -> str:
        """The word of the language that the token is, in capitals, or an empty string."""
        word = self.text.upper()
        return word if self.kind == "name" and word in _WORDS else ""


def parse_filter(text: str) -> Condition | None:
    """Return a filter as a tree, or None for one that is empty.

    Raises:
        FilterError: If it does not follow the grammar, is longer than 10,000 characters, or is nested deeper than
            100 levels.
    """
    parser = _Parser(text, what="filter")
    if parser.at_end():
        return None
    condition = parser.read_any_of()
    parser.expect_end("AND, OR or the end of the filter")
    return condition


def parse_order(text: str) -> tuple[Order, ...]:
    """Return the columns of ``accuracy DESC, `odd name` ASC`` in their order; none for an empty text.

    Raises:
        FilterError: If it does not follow the grammar.
    """
    return _parse_list(text, "order_by", _Parser.read_order)


def parse_columns(text: str) -> tuple[Column, ...]:
    """Return the columns of ``run_id, tags.`odd key` `` in their order; none for an empty text.

    Raises:
        FilterError: If it does not follow the grammar.
    """
    return _parse_list(text, "columns", _Parser.read_column)


def _parse_list(text: str, what: str, read: Callable[[_Parser], _Item]) -> tuple[_Item, ...]:
    parser = _Parser(text, what=what)
    items: list[_Item] = []
    while not parser.at_end():
        if items:
            parser.expect_mark(",")
        items.append(read(parser))
    return tuple(items)


class _Parser:
    """Reads a text from left to right, by recursive descent."""

    def __init__(self, text: str, *, what: str) -> None:
        self.text = text
        self.what = what
        if len(text) > MAX_LENGTH:
            self.fail(f"is longer than {MAX_LENGTH:,} characters", MAX_LENGTH)
        self.tokens = self._split()
        self.index = 0
        self.depth = 0

    def fail(self, message: str, position: int) -> NoReturn:
        raise FilterError(message, self.text, position, what=self.what)

    def _split(self) -> Sequence[_Token]:
        tokens, position = [], 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                self._fail_at_character(position)
            elif match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match.group(), position))
            position = match.end()
        return [*tokens, _Token("end", "", len(self.text))]

    def _fail_at_character(self, position: int) -> NoReturn:
        character = self.text[position : position + 2].lstrip(".")[:1] or "."
        if character in "'\"`":
            self.fail(f"the {character} is never closed", position)
        self.fail(f"{shorten(character)} means nothing here; a name with odd characters stands in `…`", position)

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def take(self) -> _Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def at_end(self) -> bool:
        return self.token.kind == "end"

    def take_word(self, *words: str) -> str:
        """Step over one of the words and return it, or return an empty string."""
        return self.take().word if self.token.word in words else ""

    def expected(self, what: str) -> FilterError:
        came = "the end" if self.at_end() else shorten(self.token.text, 40)
        return FilterError(f"expected {what}, got {came}", self.text, self.token.position, what=self.what)

    def expect_mark(self, mark: str) -> None:
        if self.token.kind != "mark" or self.token.text != mark:
            raise self.expected(repr(mark))
        self.take()

    def expect_end(self, what: str) -> None:
        if not self.at_end():
            raise self.expected(what)

    def read_any_of(self) -> Condition:
        parts = [self.read_all_of()]
        while self.take_word("OR"):
            parts.append(self.read_all_of())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def read_all_of(self) -> Condition:
        parts = [self.read_negation()]
        while self.take_word("AND"):
            parts.append(self.read_negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def read_negation(self) -> Condition:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"is nested deeper than {MAX_DEPTH} levels", self.token.position)
        condition: Condition
        if self.take_word("NOT"):
            condition = Not(self.read_negation())
        elif self.token.kind == "mark" and self.token.text == "(":
            self.take()
            condition = self.read_any_of()
            self.expect_mark(")")
        else:
            condition = self.read_condition()
        self.depth -= 1
        return condition

    def read_condition(self) -> Condition:
        column = self.read_column()
        if self.token.kind == "operator":
            return Comparison(column, OPERATORS[self.take().text], self.read_value_or_column())
        if self.take_word("IS"):
            negated = bool(self.take_word("NOT"))
            if not self.take_word("NULL"):
                raise self.expected("NULL")
            return Not(Missing(column)) if negated else Missing(column)
        negated = bool(self.take_word("NOT"))
        condition = self.read_words(column)
        return Not(condition) if negated else condition

    def read_words(self, column: Column) -> Condition:
        """Read what follows a column and begins with a word."""
        word = self.take_word("IN", "LIKE", "ILIKE", "BETWEEN")
        if word == "IN":
            return Membership(column, self.read_values())
        if word == "BETWEEN":
            low = self.read_value()
            if not self.take_word("AND"):
                raise self.expected("AND")
            return And((Comparison(column, ">=", low), Comparison(column, "<=", self.read_value())))
        if word:
            pattern = self.read_value()
            if not isinstance(pattern.value, str):
                self.fail(f"{word} needs a text in quotes", pattern.position)
            return Like(column, pattern, ignore_case=word == "ILIKE")
        raise self.expected("an operator: = != < <= > >= IN LIKE ILIKE BETWEEN IS")

    def read_values(self) -> tuple[Literal, ...]:
        self.expect_mark("(")
        values = [self.read_value()]
        while self.token.text == "," and self.token.kind == "mark":
            self.take()
            values.append(self.read_value())
        self.expect_mark(")")
        return tuple(values)

    def read_value_or_column(self) -> Literal | Column:
        token = self.token
        if token.kind == "name" and not token.word and not token.text.startswith('"'):
            return self.read_column()
        return self.read_value()

    def read_value(self) -> Literal:
        token = self.token
        value: bool | int | float | str
        if token.word in ("TRUE", "FALSE"):
            value = token.word == "TRUE"
        elif token.kind == "number":
            value = read_number(token.text)
        elif token.kind == "single" or (token.kind == "name" and token.text.startswith('"')):
            value = self._unquote(token.text, token.position)
        elif token.word == "NULL":
            raise self.expected("a value (a column without one is found by IS NULL)")
        else:
            raise self.expected("a number, true, false, or a text in quotes")
        self.take()
        return Literal(value, token.position)

    def read_column(self) -> Column:
        token = self.token
        if token.kind != "name" or token.word:
            raise self.expected("a column (one whose name is a word of the filter language stands in `…`)")
        self.take()
        quote = min((token.text.find(q) for q in '`"' if q in token.text), default=len(token.text))
        quoted = token.text[quote:]
        name = token.text[:quote] + (self._unquote(quoted, token.position) if quoted else "")
        return Column(name, token.position)

    def read_order(self) -> Order:
        column = self.read_column()
        return Order(column, descending=self.take_word("ASC", "DESC") == "DESC")

    def _unquote(self, text: str, position: int) -> str:
        inner = text[1:-1].replace(text[0] * 2, text[0])
        if any("\ud800" <= c <= "\udfff" for c in inner):
            self.fail("holds a character that is no text", position)
        return inner


def read_number(text: str) -> int | float:
    """Return the number that a text is; whole ones that a machine's integer holds stay exact."""
    digits = text.lstrip("+-")
    return int(text) if digits.isdecimal() and len(digits) <= _MAX_WHOLE_DIGITS else float(text)


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
class And:
    """All of at least two conditions hold."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Or:
    """One of at least two conditions holds."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Not:
    """What does not hold."""

    condition: Condition


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
