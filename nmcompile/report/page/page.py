"""The page: one HTML file with everything in it, which asks for nothing and trusts no name.

The data is compressed and encoded, so that nothing of a model's names can become markup; the page's
script writes text alone. A content security policy lets the page's own script and style run, by
their hashes, and nothing else load.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup  # of jinja2

from nmcompile.report.page.data import data_of

if TYPE_CHECKING:
    from nmcompile.report.report import Report


def page(report: Report, title: str) -> str:
    """The report as HTML.

    Raises:
        NMError: fast-sugiyama is not installed.
    """
    document = json.dumps(data_of(report), separators=(",", ":")).encode()
    packed = base64.b64encode(gzip.compress(document, 9, mtime=0)).decode()
    style, script = _read("page.css"), _read("page.js")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_read("page.html.jinja")).render(
        title=title,
        data=packed,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return (resources.files("nmcompile.report.page") / name).read_text(encoding="utf-8")
