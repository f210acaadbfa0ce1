"""How torch refuses an argument, and the one clear message that it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlmeta.commands import catalog
from mlmeta.errors import CommandsError, Fault, shorten

# What constructors and forward passes of torch raise where an argument or a shape does not suit them. OverflowError
# and ZeroDivisionError are ArithmeticErrors, NotImplementedError (an unknown mode) is a RuntimeError.
REFUSALS = (
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)
# Arguments that come from the program; a message shows what the file gave.
_NOT_SHOWN = ("params", "optimizer", "schedulers", "batch_first")


def quote_torch(error: Exception) -> str:
    """Return an error's text on one line of at most 300 characters; its class where it has no text."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def explain_refusal(name: str, arguments: Mapping[str, Any], error: Exception, *, path: str) -> CommandsError:
    """Return the error for arguments that a class refused, in torch's own words."""
    shown = {key: value for key, value in arguments.items() if key not in _NOT_SHOWN}
    return CommandsError([Fault(path, f"{name} refuses its arguments: {quote_torch(error)}", shorten(shown, 200))])


def make_named(role: str, name: str, arguments: Mapping[str, Any], *, path: str) -> Any:
    """Make the object of a name in the catalog.

    Args:
        role: A role of `mlmeta.commands.catalog`.
        name: The name.
        arguments: Keyword arguments with their values read.
        path: Where it stands in the commands.

    Raises:
        CommandsError: If the name is not on the list, or its class refuses the arguments.
    """
    cls = catalog.find_entry(role, name, path=path).load()
    try:
        return cls(**arguments)
    except REFUSALS as error:
        raise explain_refusal(name, arguments, error, path=path) from None
