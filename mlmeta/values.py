"""Values as JSON documents write them, and as documents of the older tool wrote them.

The older tool evaluated strings as Python. mlmeta never does: a string is read by the few forms below and by
nothing else, so ``"'RGB'"`` is RGB, ``"Image.ANTIALIAS"`` is LANCZOS, ``"(0.9, 0.999)"`` is a tuple of two
numbers, and ``"2 * 3"`` stays the string that it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_QUOTED = re.compile(r"""^(['"])([^'"]*)\1$""")
_ENUM = re.compile(
    r"^(?:PIL\.)?(?:transforms\.)?(?:Image(?:\.(?:Resampling|Transpose|Transform|Dither|Palette|Quantize))?"
    r"|InterpolationMode|AutoAugmentPolicy)\.([A-Z][A-Z0-9_]*)$"
)
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
# Possessive (*+): blanks can be read in one way only, so that no string takes long.
_NUMBERS = rf"({_NUMBER}(?:\s*+,\s*+{_NUMBER})*+)\s*+(,?)\s*+"
_SEQUENCE = re.compile(rf"\(\s*+{_NUMBERS}\)|\[\s*+{_NUMBERS}\]", re.ASCII)
_WORDS: Mapping[str, bool | None] = {"True": True, "False": False, "None": None}
_RENAMED = {"ANTIALIAS": "LANCZOS"}
# No older form is longer; the limit keeps hostile strings away from the patterns.
_LONGEST = 1000


def read_value(value: Any) -> Any:
    """Return what a JSON value stands for; lists and dicts are read through.

    Args:
        value: Any JSON value.

    Returns:
        The value itself, but for strings in one of the older forms: a quoted string gives its inside, a name of
        a Pillow or torchvision enum its last part, ``True``/``False``/``None`` the constant, and a bracketed
        row of numbers a tuple, but for one number in parentheses, which Python too reads as that number.
    """
    if isinstance(value, str):
        return _read_string(value)
    if isinstance(value, list):
        return [read_value(item) for item in value]
    if isinstance(value, dict):
        return {key: read_value(item) for key, item in value.items()}
    return value


def _read_string(text: str) -> Any:
    if len(text) > _LONGEST:
        return text
    stripped = text.strip()
    if quoted := _QUOTED.match(stripped):
        return _read_string(quoted.group(2))
    if stripped in _WORDS:
        return _WORDS[stripped]
    if enum := _ENUM.match(stripped):
        return _RENAMED.get(enum.group(1), enum.group(1))
    if sequence := _SEQUENCE.fullmatch(stripped):
        round_row, round_comma, square_row, _ = sequence.groups()
        numbers = tuple(_read_number(part) for part in (round_row or square_row).split(","))
        return numbers[0] if round_row and len(numbers) == 1 and not round_comma else numbers
    return text


def _read_number(text: str) -> int | float:
    stripped = text.strip()
    return int(stripped) if re.fullmatch(r"[-+]?\d+", stripped) else float(stripped)
