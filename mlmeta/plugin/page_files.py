"""What the pages are made of: templates, styles and scripts, under addresses that change when they do."""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlmeta.reports.html import escape_text

_FOLDER = Path(__file__).parent / "page"
_PLACEHOLDER = re.compile("@@([a-z_]+)@@")
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_PLOTLY = "plotly.js"


class Html(str):
    """Text that is HTML already, with nothing of strangers in it that was not escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Asset:
    """A file that a page loads.

    Attributes:
        content_type: As the header says it.
        content: The file.
        packed: The same with gzip.
    """

    content_type: str
    content: bytes
    packed: bytes


@functools.cache
def read_template(name: str) -> str:
    """Return the text of a template."""
    return (_FOLDER / f"{name}.html").read_text(encoding="utf-8")


@functools.cache
def read_example() -> str:
    """Return train commands to begin with, on pictures that mlmeta brings."""
    return (_FOLDER / "example.json").read_text(encoding="utf-8").strip()


def fill_template(name: str, values: Mapping[str, object]) -> Html:
    """Return a template with its placeholders ``@@name@@`` filled; what is no `Html` is escaped.

    Raises:
        KeyError: If a value is missing.
    """

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        return value if isinstance(value, Html) else escape_text(value)

    return Html(_PLACEHOLDER.sub(fill, read_template(name)))


@functools.cache
def digest_assets() -> str:
    """Return what stands in the addresses of scripts and styles: other files, other addresses."""
    files = sorted(file for file in _FOLDER.iterdir() if file.suffix in _TYPES)
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()[:12]


def plotly_version() -> str:
    """Return the version of plotly.js that the Python package brings."""
    from plotly.offline import get_plotlyjs_version

    return str(get_plotlyjs_version())


def find_asset(version: str, name: str) -> Asset | None:
    """Return an asset; None where there is none of that name, or only of another version."""
    if name == _PLOTLY:
        return _read_plotly() if version == f"plotly-{plotly_version()}" else None
    # Only names that are listed are opened, whatever a request asks for.
    known = {file.name: file for file in _FOLDER.iterdir() if file.suffix in _TYPES}
    return _read_asset(known[name]) if version == digest_assets() and name in known else None


@functools.cache
def _read_asset(file: Path) -> Asset:
    return _pack(_TYPES[file.suffix], file.read_bytes())


@functools.cache
def _read_plotly() -> Asset:
    """Return plotly.js, 4.8 MB; packed, which takes a third of a second once, 1.5 MB."""
    from plotly.offline import get_plotlyjs

    return _pack(_TYPES[".js"], str(get_plotlyjs()).encode())


def _pack(content_type: str, content: bytes) -> Asset:
    return Asset(content_type, content, gzip.compress(content, 6, mtime=0))
