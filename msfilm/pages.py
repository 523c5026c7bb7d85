"""The course as web pages: one a notebook and an index, each a single file that needs neither network nor script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape, unescape
from pathlib import Path
from typing import Any

import jinja2
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from msfilm.files import atomic_path

__all__ = ["write_index", "write_page"]


def write_page(
    path: Path,
    notebook: Any | None,
    *,
    title: str,
    error: str = "",
    previous: tuple[str, str] | None = None,
    following: tuple[str, str] | None = None,
    made: str = "",
) -> Path:
    """Write one executed notebook as a page.

    Args:
        path: the HTML file.
        notebook: the executed notebook, perhaps only in part, or None where it could not even be read.
        title: for the browser's tab.
        error: the last line of what stopped it, shown on top.
        previous: file name and title of the page before, if there is one.
        following: file name and title of the page after.
        made: what made the page, for its foot.
    """
    body = "" if notebook is None else _Exporter(template_name="basic").from_notebook_node(notebook)[0]
    body = _NOTEBOOK_LINK.sub(r'href="\1.html', body)
    return _write(
        path, "page.html", title=title, error=error, body=body, previous=previous, following=following, made=made
    )


def write_index(path: Path, rows: Sequence[Mapping[str, Any]], *, facts: Sequence[str], made: str = "") -> Path:
    """Write the table of all notebooks.

    Args:
        path: the HTML file.
        rows: for each notebook its name, title, question (Markdown), status, profile, seconds, peak_mb, error and
            page ('' for one that has none).
        facts: short lines about the run: profile, machine, total time.
        made: what made the page, for its foot.
    """
    shown = [{**row, "question": _markdown(row["question"])} for row in rows]
    return _write(path, "index.html", title="msfilm: the course", rows=shown, facts=facts, made=made)


def _write(path: Path, template: str, **fields: Any) -> Path:
    text = _templates().get_template(template).render(css=_css(), **fields)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


# A link from one notebook to another leads from page to page.
_NOTEBOOK_LINK = re.compile(r'href="(\d\d_[\w-]+)\.ipynb(?=["#])')

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ css | safe }}</style>
</head>
<body>
{% block content %}{% endblock %}
<footer>{{ made }}</footer>
</body>
</html>
"""

_PAGE = """{% extends "frame.html" %}
{% block content %}
{% macro links() %}
<span>{% if previous %}<a rel="prev" href="{{ previous[0] }}">&larr; {{ previous[1] }}</a>{% endif %}</span>
<a href="index.html">All notebooks</a>
<span>{% if following %}<a rel="next" href="{{ following[0] }}">{{ following[1] }} &rarr;</a>{% endif %}</span>
{% endmacro %}
<nav aria-label="Course">{{ links() }}</nav>
<main>
{% if error %}<p class="banner" role="alert">
<strong class="failed">This notebook stopped early:</strong> {{ error }}</p>{% endif %}
{{ body | safe }}
</main>
<nav aria-label="Course, at the end">{{ links() }}</nav>
{% endblock %}
"""

_INDEX = """{% extends "frame.html" %}
{% block content %}
<main class="index">
<h1>msfilm: the course</h1>
<p>How does a lesion-segmentation network generalise across MRI contrasts? Read the notebooks in order.</p>
<ul>{% for fact in facts %}<li>{{ fact }}</li>{% endfor %}</ul>
<div class="scroll"><table>
<caption>The notebooks, with the time and memory each took on this machine.</caption>
<thead><tr><th scope="col">No.</th><th scope="col">Notebook and its question</th><th scope="col">Status</th>
<th scope="col">Profile</th><th scope="col" class="number">Time</th>
<th scope="col" class="number">Peak memory</th></tr></thead>
<tbody>
{% for row in rows %}<tr>
<td>{{ row.name.split("_")[0] }}</td>
<th scope="row">{% if row.page %}<a href="{{ row.page }}">{{ row.title }}</a>{% else %}{{ row.title }}{% endif %}
<div class="question">{{ row.question | safe }}</div></th>
<td><span class="{{ row.status | replace(' ', '-') }}">{{ row.status }}</span>
{%- if row.error %}<br>{{ row.error }}{% endif %}</td>
<td>{{ row.profile }}</td>
<td class="number" data-label="Time">{% if row.seconds %}{{ "%.0f" | format(row.seconds) }} s{% endif %}</td>
<td class="number" data-label="Peak memory">{% if row.peak_mb %}{{ row.peak_mb }} MB{% endif %}</td>
</tr>{% endfor %}
</tbody></table></div>
</main>
{% endblock %}
"""


@cache
def _templates() -> jinja2.Environment:
    sources = {"frame.html": _FRAME, "page.html": _PAGE, "index.html": _INDEX}
    return jinja2.Environment(loader=jinja2.DictLoader(sources), autoescape=True)


@cache
def _css() -> str:
    """Our own style and the colours of code, light and dark."""
    from pygments.formatters import HtmlFormatter

    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    own = (Path(__file__).parent / "assets" / "course.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML, which browsers draw by themselves, without a script from afar."""

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")


def _mathml(body: str, display: str) -> str:
    from latex2mathml.converter import convert

    try:
        return convert(unescape(body).strip(), display=display)
    except Exception:  # its parser raises many kinds; the formula then stays readable as LaTeX
        return f"<code>{escape(body)}</code>"


def _markdown(text: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(text)


class _Exporter(HTMLExporter):
    """nbconvert's exporter with our Markdown renderer; the frame round its bare body is ours too."""

    @jinja2.pass_context
    def markdown2html(self, context: jinja2.runtime.Context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, attachments=attachments, exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)
