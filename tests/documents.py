"""The documents of the repository as tests read them: fenced blocks, commands, links."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block: its language, the mark in a comment above it, its text."""

    language: str
    mark: str
    text: str


def blocks(document, language=""):
    """The fenced blocks of a document, of one language if it is named."""
    pattern = r"(?:^<!-- (\w+) -->\n)?^```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, document.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(kind, mark, text) for mark, kind, text in found if language in ("", kind)]


def named(document, name, language="python"):
    """The block that begins with the comment `# name`."""
    (block,) = [b for b in blocks(document, language) if b.text.startswith(f"# {name}\n")]
    return block.text


def commands(document):
    """Every `sfactory VERB ...` of a document as words: lines of bash blocks, and code within sentences."""
    lines = [line for block in blocks(document, "bash") for line in block.text.splitlines()]
    sentences = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", sentences)
    typed = [re.sub(r" > \S+", "", code) for code in [*lines, *inline]]
    return [shlex.split(code, comments=True)[1:] for code in typed if code.startswith("sfactory ")]


def flags(document):
    """Every `--optim.lr ...` in a sentence or table, as words; `--section.field` itself is none."""
    found = re.findall(r"`(--\w+\.[^`\n]+)`", document.read_text())
    return [code.split() for code in found if not code.startswith("--section.field")]
