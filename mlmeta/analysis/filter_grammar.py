r"""The filter language as text: its grammar, and the faults of what does not follow it.

It is MLflow's search syntax with numbers, OR and parentheses added. A doubled quote stands for one inside quotes. In
front of an operator double quotes hold a column, after it a text, as in MLflow. A name may stand in quotes after a
prefix, too: tags.`any key`. Words of the language may be written in any case. A column on the right may be shifted by a
number, with blanks around the sign, and `OF_TASK` may be compared with: accuracy < task.best - 0.1.

`parse_filter` makes a tree of it; `FilterError` points into the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken, v_args

from mlmeta.errors import BadInputError, shorten

MAX_LENGTH = 10_000
MAX_DEPTH = 100
# What is known of an attempt's task beside its params: the best value that any attempt on it has, and that of guessing.
OF_TASK = ("task.best", "task.chance")
_MAX_WHOLE_DIGITS = 18
_SHOWN = 100
_END = "$END"
_LEVELS = ("LPAR", "NOT")
_NO_TEXT = re.compile("[\ud800-\udfff]")
# Possessive quantifiers: a hostile text costs no more than its length.
_GRAMMAR = r"""
    ?filter: [any_of]
    order_by: (order ("," order)*)?
    columns: (column ("," column)*)?

    order: column [ASC | DESC]
    ?any_of: all_of (_OR all_of)*
    ?all_of: negation (_AND negation)*
    ?negation: NOT negation -> negated | "(" any_of ")" | condition
    ?condition: column OPERATOR (literal | named | shifted)    -> comparison
             | column [NOT] _IN "(" literal ("," literal)* ")" -> membership
             | column [NOT] (LIKE | ILIKE) text                -> like
             | column [NOT] _BETWEEN literal _AND literal      -> between
             | column _IS [NOT] _NULL                          -> missing
    column: NAME | DOUBLE
    named: NAME   -> column
    shifted: named SIGN NUMBER | named SIGNED
    literal: NUMBER | SIGNED | TRUE | FALSE | SINGLE | DOUBLE
    text: SINGLE -> literal | DOUBLE -> literal

    OPERATOR: /<=|>=|<>|!=|==|[=<>]/
    NUMBER.1: /(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![\w.])/
    SIGNED.1: /[-+](?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![\w.])/
    SIGN: /[-+*]/
    SINGLE: /'(?:[^']++|'')*+'/
    DOUBLE: /"(?:[^"]++|"")*+"/
    NAME: /`(?:[^`]++|``)*+`|\w++(?:[.\-\/:]\w++)*+(?:\.(?:`(?:[^`]++|``)*+`|"(?:[^"]++|"")*+"))?/
    SPACE: /\s++/
    %ignore SPACE
    %declare _AND _OR NOT _IN LIKE ILIKE _IS _NULL _BETWEEN TRUE FALSE ASC DESC
"""
_WORDS = {name.strip("_"): name for name in _GRAMMAR.partition("%declare")[2].split()}
_OPERATORS = {"==": "=", "<>": "!="}
# A terminal that may come → what it is in words: the first of them says all that may.
_EXPECTED = {
    "NUMBER": "a number, true, false, or a text in quotes",
    "OPERATOR": "an operator: = != < <= > >= IN LIKE ILIKE BETWEEN IS",
    "_BETWEEN": "an operator: IN LIKE ILIKE BETWEEN",
    "NAME": "a column (one whose name is a word of the filter language stands in `…`)",
    "SINGLE": "a text in quotes",
    "_NULL": "NULL",
}
_MARKS = {"COMMA": "','", "LPAR": "'('", "RPAR": "')'", "_AND": "AND", "_OR": "OR", _END: "the end"}


def parse_filter(text: str) -> Condition | None:
    """Return a filter as a tree, or None for one that is empty.

    Raises:
        FilterError: If it does not follow the grammar, is longer than 10,000 characters, or is nested deeper than
            100 levels.
    """
    condition: Condition | None = _parse(text, "filter")
    return condition


def parse_order(text: str) -> tuple[Order, ...]:
    """Return the columns of ``accuracy DESC, `odd name` ASC`` in their order; none for an empty text.

    Raises:
        FilterError: If it does not follow the grammar.
    """
    orders: tuple[Order, ...] = _parse(text, "order_by")
    return orders


def parse_columns(text: str) -> tuple[Column, ...]:
    """Return the columns of ``run_id, tags.`odd key` `` in their order; none for an empty text.

    Raises:
        FilterError: If it does not follow the grammar.
    """
    columns: tuple[Column, ...] = _parse(text, "columns")
    return columns


def _parse(text: str, what: str) -> Any:
    """Return what a rule of the grammar makes of a text."""
    fault = partial(FilterError, text=text, what=what)
    if len(text) > MAX_LENGTH:
        raise fault(f"is longer than {MAX_LENGTH:,} characters", position=MAX_LENGTH)
    if broken := _NO_TEXT.search(text):
        raise fault("holds a character that is no text", position=broken.start())
    parser = _load_parser().parse_interactive(text, start=what)
    try:
        for token in parser.iter_parse():
            # On the parser's stack wait the parentheses that are open, and the NOTs that have no condition yet.
            waiting = parser.parser_state.value_stack if token.type in _LEVELS else ()
            if sum(getattr(value, "type", "") in _LEVELS for value in waiting) >= MAX_DEPTH - 1:
                raise fault(f"is nested deeper than {MAX_DEPTH} levels", position=token.start_pos or 0)
        return parser.feed_token(Token(_END, "", len(text)))
    except UnexpectedCharacters as error:
        position = error.pos_in_stream or 0
        raise fault(_explain_character(text, position), position=position) from None
    except UnexpectedToken as error:
        accepts: set[str] = parser.accepts()  # type: ignore[no-untyped-call]
        message = _explain_token(error.token, accepts, what)
        raise fault(message, position=error.token.start_pos or 0) from None


@cache
def _load_parser() -> Lark:
    parser = Lark(
        _GRAMMAR,
        parser="lalr",
        lexer="basic",
        start=["filter", "order_by", "columns"],
        transformer=_TreeMaker(),
        lexer_callbacks={"NAME": _find_word},
    )
    # It makes its scanner when it first reads, which several threads must not do at once.
    parser.parse("accuracy = 1", start="filter")
    return parser


def _find_word(name: Token) -> Token:
    """Return a name, or the word of the language that it is."""
    word = _WORDS.get(name.upper())
    return Token.new_borrow_pos(word, name, name) if word else name


def _explain_character(text: str, position: int) -> str:
    character = text[position : position + 2].lstrip(".")[:1] or "."
    if character in "'\"`":
        return f"the {character} is never closed"
    return f"{shorten(character)} means nothing here; a name with odd characters stands in `…`"


def _explain_token(came: Token, accepts: set[str], what: str) -> str:
    if accepts == {"NUMBER"}:
        expected = "a number"
    elif came.type == "_NULL" and "NUMBER" in accepts:
        expected = "a value (a column without one is found by IS NULL)"
    elif found := [words for terminal, words in _EXPECTED.items() if terminal in accepts]:
        expected = found[0]
    else:
        *others, last = [words for terminal, words in _MARKS.items() if terminal in accepts]
        expected = f"{', '.join(others)} or {last}" if others else last
        expected += " of the filter" if what == "filter" and _END in accepts else ""
    return f"expected {expected}, got {'the end' if came.type == _END else shorten(str(came), 40)}"


def read_number(text: str) -> int | float:
    """Return the number that a text is; whole ones that a machine's integer holds stay exact."""
    digits = text.lstrip("+-")
    return int(text) if digits.isdecimal() and len(digits) <= _MAX_WHOLE_DIGITS else float(text)


class FilterError(BadInputError):
    """A filter, an order or a list of columns cannot be understood, or asks what the columns do not hold."""

    def __init__(self, message: str, text: str, position: int, *, what: str = "filter") -> None:
        """Make a message that points into the text, at the character where the fault starts or at its end."""
        self.position = position
        start = max(0, position - _SHOWN // 2) if len(text) > _SHOWN else 0
        part = "".join(c if c.isprintable() else " " for c in text[start : start + _SHOWN])
        pointed = f"  {part}\n  {' ' * (position - start)}^"
        super().__init__(f"{what}, character {position + 1}: {message}\n{pointed}")


@dataclass(frozen=True)
class Column:
    """A column as it was written, quotes removed: ``params.optimizer.lr``, ``accuracy``.

    Attributes:
        shift: A sign (+ - *) and the number that is added, taken away or multiplied by; None for the column itself.
    """

    name: str
    position: int = 0
    shift: tuple[str, int | float] | None = None


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


@v_args(inline=True)
class _TreeMaker(Transformer[Token, Any]):
    """Makes the tree from the bottom up: a method for each rule of the grammar, called with what it holds."""

    def columns(self, *columns: Any) -> tuple[Any, ...]:
        return columns

    order_by = columns

    def order(self, column: Column, direction: Token | None) -> Order:
        return Order(column, descending=direction is not None and direction.type == "DESC")

    def any_of(self, *conditions: Condition) -> Condition:
        return Or(conditions)

    def all_of(self, *conditions: Condition) -> Condition:
        return And(conditions)

    def negated(self, no: Token | None, condition: Condition) -> Condition:
        return Not(condition) if no else condition

    def comparison(self, column: Column, sign: Token, value: Literal | Column) -> Condition:
        return Comparison(column, _OPERATORS.get(sign, str(sign)), value)

    def membership(self, column: Column, no: Token | None, *values: Literal) -> Condition:
        return self.negated(no, Membership(column, values))

    def like(self, column: Column, no: Token | None, word: Token, pattern: Literal) -> Condition:
        return self.negated(no, Like(column, pattern, ignore_case=word.type == "ILIKE"))

    def between(self, column: Column, no: Token | None, low: Literal, high: Literal) -> Condition:
        return self.negated(no, And((Comparison(column, ">=", low), Comparison(column, "<=", high))))

    def missing(self, column: Column, no: Token | None) -> Condition:
        return self.negated(no, Missing(column))

    def column(self, name: Token) -> Column:
        prefix = re.split('[`"]', name, maxsplit=1)[0]
        return Column(prefix + _unquote(name[len(prefix) :]), name.start_pos or 0)

    def shifted(self, column: Column, sign: Token, number: Token | None = None) -> Column:
        sign_of, digits = (sign, number) if number is not None else (sign[0], sign[1:])
        return replace(column, shift=(str(sign_of), read_number(digits)))

    def literal(self, token: Token) -> Literal:
        if token.type in ("TRUE", "FALSE"):
            value: bool | int | float | str = token.type == "TRUE"
        else:
            value = read_number(token) if token.type in ("NUMBER", "SIGNED") else _unquote(token)
        return Literal(value, token.start_pos or 0)


def _unquote(text: str) -> str:
    """Return what stands in quotes; a doubled one stands for itself."""
    return text[1:-1].replace(text[:1] * 2, text[:1])


def list_columns(condition: Condition | None) -> tuple[Column, ...]:
    """Return the columns that a filter names, in its order; what is of a task is none."""
    match condition:
        case None:
            return ()
        case And(conditions) | Or(conditions):
            return tuple(column for part in conditions for column in list_columns(part))
        case Not(inner):
            return list_columns(inner)
        case Comparison(column, _, Column() as other):
            named: tuple[Column, ...] = (column, other)
        case _:
            named = (condition.column,)
    return tuple(column for column in named if column.name not in OF_TASK)
