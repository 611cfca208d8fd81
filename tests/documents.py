"""Read fenced blocks, commands and flags from the Markdown documents, for tests."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block: language, mark in the comment above it, text."""

    language: str
    mark: str
    text: str


def blocks(document, language=""):
    """List the fenced blocks of a document, optionally of one language."""
    pattern = r"(?:^<!-- (\w+) -->\n)?^```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, document.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(kind, mark, text) for mark, kind, text in found if language in ("", kind)]


def named(document, name, language="python"):
    """Return the block that begins with the comment `# name`."""
    (block,) = [b for b in blocks(document, language) if b.text.startswith(f"# {name}\n")]
    return block.text


def commands(document):
    """List every `sfactory COMMAND ...` as words: lines of bash blocks and inline code."""
    lines = [line for block in blocks(document, "bash") for line in block.text.splitlines()]
    sentences = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", sentences)
    typed = [re.sub(r" > \S+", "", code) for code in [*lines, *inline]]
    return [shlex.split(code, comments=True)[1:] for code in typed if code.startswith("sfactory ")]


def flags(document):
    """List every `--optim.lr ...` in inline code, as words, except the placeholder `--section.field`."""
    found = re.findall(r"`(--\w+\.[^`\n]+)`", document.read_text())
    return [code.split() for code in found if not code.startswith("--section.field")]
