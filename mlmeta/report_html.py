"""The HTML of a report: text, data and figures put into one page that loads nothing and runs only its own scripts.

Whatever comes from the data passes `escape_text` or `embed_json`. Scripts run only if the page's content security
policy holds their SHA-256, and the policy allows no request at all. The plots that WebGL draws compile their own
code, so that ``unsafe-eval`` is needed; only the scripts of the page can use it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FOLDER = Path(__file__).parent
_PLACEHOLDER = re.compile("@@([a-z]+)@@")


def escape_text(value: object) -> str:
    """Return text for an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def embed_json(value: Any) -> str:
    """Return JSON that may stand in a script element: no ``<``, ``>`` or ``&``, and null for what is not finite."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def embed_figure(figure: go.Figure, *, label: str, caption: str = "", group: str = "") -> str:
    """Return a figure element; the page's script draws it when it is scrolled to.

    The texts of attempts are left out, for the page holds them once: see ``texts`` in `fill_page`.

    Args:
        figure: Points with ``customdata`` belong to the attempt of that row.
        label: Says what is seen, for those who do not see it.
        caption: HTML below it.
        group: Figures of one group follow the same controls.
    """
    spec = figure.to_plotly_json()
    layout = {name: value for name, value in spec["layout"].items() if name != "template"}
    data = [_without_texts(trace) for trace in spec["data"]]
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure><div data-figure data-group="{escape_text(group)}" role="img" aria-label="{escape_text(label)}"'
        f' style="min-height:{int(layout["height"])}px"></div>{below}'
        f'<script type="application/json">{embed_json({"data": data, "layout": layout})}</script></figure>'
    )


def _without_texts(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in trace.items() if name != "text" or "customdata" not in trace}


def fill_page(
    *, title: str, summary: str, sections: Iterable[tuple[str, str, str]], texts: Iterable[str], rows: Any
) -> str:
    """Return the whole page.

    Args:
        title: Text.
        summary: HTML below the title.
        sections: Anchor, title (text) and body (HTML) of each.
        texts: For each attempt, in the order of its row, what is shown when it is pointed at (HTML).
        rows: The attempts as data, for programs that read the page.
    """
    sections = list(sections)
    scripts = [_read_plotly(), _read("report.js")]
    parts = {
        "title": escape_text(title),
        "policy": _make_policy(scripts),
        "style": _read("report.css"),
        "summary": summary,
        "contents": "\n".join(f'<li><a href="#{a}">{escape_text(name)}</a></li>' for a, name, _ in sections),
        "sections": "\n".join(_section(*section) for section in sections),
        "attempts": embed_json({"texts": list(texts), "rows": rows}),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass: what is put in is never searched for placeholders itself.
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], _read("report.html"))


def _section(anchor: str, title: str, body: str) -> str:
    heading = f'<h2 id="{anchor}-title">{escape_text(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}\n{body}</section>'


def _make_policy(scripts: Iterable[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _read_plotly() -> str:
    """Return plotly.js; browsers read its line ends as line feeds, and so does the digest."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")
