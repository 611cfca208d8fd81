"""The documentation site: it builds without a warning or a network, and every page, link and anchor is there."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag

import pytest
from documents import DOCUMENTS, ROOT

INDEX = ROOT / "docs" / "README.md"
NO_NETWORK = "http://127.0.0.1:9"  # nothing listens on this port: a download would fail, and with it the build
SPELLED = [*DOCUMENTS, ROOT / "CHANGELOG.md"]


def build(source, out):
    """Build a folder with the configuration of the site, as `make site` does."""
    words = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs")]
    environment = {"PATH": "/usr/bin:/bin", "http_proxy": NO_NETWORK, "https_proxy": NO_NETWORK}
    return subprocess.run([*words, str(source), str(out)], env=environment, capture_output=True, text=True, timeout=110)


class Page(NamedTuple):
    """What a page has: anchors, links, and addresses that a browser loads by itself."""

    ids: set[str]
    links: list[str]
    loaded: list[str]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.page = Page(set(), [], [])

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("id"):
            self.page.ids.add(values["id"])
        if tag == "a" and values.get("href"):
            self.page.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "index", "search", "next", "prev", "author"):
            self.page.loaded.append(values["href"])
        elif values.get("src"):
            self.page.loaded.append(values["src"])


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text())
    return reader.page


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site: path of every page -> its content."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path: read_page(path) for path in out.rglob("*.html")}


def target_of(path, link):
    """The file and the anchor that a link on a page leads to, or None where it leaves the site."""
    if re.match(r"[a-z]+:", link):
        return None
    name, anchor = urldefrag(re.sub(r"\?v=\w+", "", link))
    return ((path.parent / unquote(name)).resolve() if name else path), unquote(anchor)


@pytest.mark.timeout(180)
def test_site_has_no_broken_link_anchor_or_picture(site):
    for path, page in site.items():
        for link in [*page.links, *page.loaded]:
            if (found := target_of(path, link)) is None:
                continue
            target, anchor = found
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in site:
                assert anchor in site[target].ids, f"{path.name}: {link}"


def test_site_loads_nothing_from_a_network(site):
    for path, page in site.items():
        assert not [link for link in page.loaded if re.match(r"(https?:)?//", link)], path.name
    folder = next(iter(site)).parents[0]
    for style in folder.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style.name


def test_every_page_of_the_site_is_reachable_in_two_clicks(site):
    (start,) = [path for path in site if path.name == "index.html"]
    (home,) = re.findall(r"url=([^\"]+)", start.read_text())
    distance = {(start.parent / home).resolve(): 0}
    for clicks in (1, 2):
        for path in [path for path, steps in distance.items() if steps == clicks - 1]:
            for link in site[path].links:
                if (found := target_of(path, link)) is not None and found[0] in site:
                    distance.setdefault(found[0], clicks)
    assert set(site) - set(distance) - {start} <= {start.parent / "genindex.html", start.parent / "search.html"}
    pages = {path.relative_to(start.parent).with_suffix("").as_posix() for path in site}
    assert {f"docs/{path.stem}" for path in INDEX.parent.glob("*.md")} <= pages
    assert {f"benchmarks/results/{path.stem}" for path in (ROOT / "benchmarks/results").glob("*.md")} <= pages


def links_of(document):
    found = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", document.read_text())
    return {(document.parent / link).resolve() for link in found if not link.startswith("https:")}


def test_every_markdown_page_is_reachable_in_two_clicks_from_the_readme():
    first = links_of(ROOT / "README.md")
    second = set().union(*(links_of(page) for page in first))
    pages = {*DOCUMENTS, *(ROOT / "benchmarks").rglob("*.md"), ROOT / "CHANGELOG.md"} - {ROOT / "README.md"}
    assert pages <= first | second


@pytest.mark.slow
def test_site_with_a_broken_link_is_not_built(tmp_path):
    (tmp_path / "docs").mkdir()
    links = "[page](gone.md), [heading](#lost), [other](page.md#away), ![picture](none.png)"
    (tmp_path / "docs/README.md").write_text(f"# Index\n\n## Start\n\n[here](page.md)\n\n{links}\n")
    (tmp_path / "docs/page.md").write_text("# Page\n\nText.\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert [name for name in ("gone.md", "lost", "away", "none.png") if name not in done.stderr] == []


@pytest.mark.slow
def test_site_shows_a_page_that_the_index_does_not_name_yet(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/README.md").write_text("# Index\n\n## Start\n\n[here](page.md)\n")
    (tmp_path / "docs/page.md").write_text("# Page\n\nText.\n")
    (tmp_path / "docs/later.md").write_text("# Later\n\nText.\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "later.html" in read_page(tmp_path / "out/docs/README.html").links


def spelling(files, *options):
    words = [str(Path(sys.executable).parent / "codespell"), *options, *map(str, files)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()


def test_documents_and_sources_have_no_misspelled_word():
    folders = [ROOT / name for name in ("sfactory", "envs", "configs", "docs/make.py", "docs/conf.py")]
    assert spelling([*SPELLED, *(ROOT / "benchmarks").rglob("*.md"), *folders]) == []


def test_documents_have_one_spelling_of_a_word():
    assert spelling(SPELLED, "--builtin", "clear,rare,en-GB_to_en-US") == []


def test_spelling_finds_a_mistake(tmp_path):
    (tmp_path / "page.md").write_text("We recieve data.\n")
    (line,) = spelling([tmp_path / "page.md"])
    assert "recieve ==> receive" in line
