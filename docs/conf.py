"""Sphinx configuration of the documentation site: `make site` writes build/site/index.html.

    python -m sphinx -W -b html -c docs . build/site

The source directory is the repository and the pages are the Markdown files that GitHub shows, so that a link between
two of them works in both places. The navigation is read from docs/README.md: a heading is a section of the sidebar, and
the pages that the text below it links to are its entries. Nothing is downloaded while the site is built or read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README"

project = "sfactory"
author = "sfactory developers"
copyright = "sfactory developers, MIT license"
version = release = re.findall(r'"(.+)"', (ROOT / "sfactory" / "_version.py").read_text())[0]

extensions = ["myst_parser"]
root_doc = INDEX
include_patterns = ["docs/*.md", "benchmarks/LOG.md", "benchmarks/results/*.md", "CONTRIBUTING.md", "CHANGELOG.md"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings

html_theme = "furo"
html_title = f"sfactory {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

REDIRECT = """<!doctype html>
<meta charset="utf-8">
<title>sfactory</title>
<meta http-equiv="refresh" content="0; url={page}">
<a href="{page}">Documentation of sfactory</a>
"""


def sections(text: str) -> dict[str, list[str]]:
    """Read heading -> documents that the text below it links to, as Sphinx names them, from the index page."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        links = re.findall(r"\]\(([^)#\s]+)\.md\)", body)
        paths = [(ROOT / "docs" / link).resolve().relative_to(ROOT).as_posix() for link in links]
        found[heading] = list(dict.fromkeys(paths))
    return found


def add_title(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a page without a title, as scripts write tables, that of its file name."""
    if not source[0].startswith("# "):
        title = docname.rpartition("/")[2].replace("_", " ").capitalize()
        source[0] = f"# {title}\n\n{source[0]}"


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append one hidden table of contents per section to the index page; pages without a link are in the last one."""
    if docname != INDEX:
        return
    found = sections(source[0])
    seen = {INDEX}
    found["More"] = sorted(app.env.found_docs)
    for heading, documents in found.items():
        entries = [f"/{name}" for name in dict.fromkeys(documents) if name not in seen]
        seen.update(documents)
        if entries:
            lines = ["\n\n```{toctree}", ":hidden:", f":caption: {heading}", "", *entries, "```\n"]
            source[0] += "\n".join(lines)


def write_entry_page(app: Sphinx, exception: Exception | None) -> None:
    """Write index.html, which leads to the index page."""
    if exception is None and app.builder.format == "html":
        page = app.builder.get_target_uri(INDEX)
        (Path(app.outdir) / "index.html").write_text(REDIRECT.format(page=page))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_title)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", write_entry_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
