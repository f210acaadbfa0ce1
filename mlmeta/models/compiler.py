"""torch's compiler, left out of a process until something asks for it.

An optimizer's step, and every shape that is worked out on ``meta``, goes through functions that torch excludes from
compilation. To mark one, at its first call, torch imports its whole compiler, ``torch._dynamo``: a second of processor
time and 100 MB in a process that compiles nothing.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


def put_off_compiler() -> None:
    """Let ``torch._dynamo`` be imported when it is first used for more than to mark what is not to be compiled.

    For a process of its own: what shares it with other code leaves torch as it is.
    """
    sys.modules.setdefault(_NAME, _CompilerToCome(_NAME))


class _CompilerToCome(ModuleType):
    """Stands for the module, which takes its place as soon as anything else of it is looked at."""

    def __getattr__(self, name: str) -> Any:
        # Whoever goes through all modules asks each for its file; __path__ is asked for by the import of a submodule.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self._import(), name)

    def _import(self) -> ModuleType:
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return importlib.import_module(_NAME)

    def graph_break(self) -> None:
        """Do nothing: no graph is recorded where there is no compiler."""

    def disable(self, function: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
        """Return a function that is not compiled: the function itself, as long as there is no compiler."""
        if options != {"wrapping": False}:
            disabled: Callable[..., Any] = self._import().disable(function, recursive, **options)
            return disabled

        mark = functools.cache(lambda: self._import().disable(function, recursive, wrapping=False))

        def call(*arguments: Any, **named: Any) -> Any:
            known = function if sys.modules.get(_NAME) is self else mark()
            return known(*arguments, **named)

        return call
