"""The page of a run: whole, closed in itself, and true to the folder."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from sfactory.monitor.table import LAG_SHARES, STAGES
from sfactory.tools import svg

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page as a browser would, and complains about what is not closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.links, self.text, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")], "a script"
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def row(i):
    """What a real row holds, with numbers that grow with i."""
    stages = {f"stage/{kind}/{stage}": 1 / len(names) for kind, names in STAGES.items() for stage in names}
    shares = {f"lag/share_{name}": float(name == ("0" if i < 3 else "2")) for name in LAG_SHARES}
    lag = {"lag/mean": 1.5, "lag/p95": 2.0, "lag/max": 3.0}
    rest = {"charts/SPS": 100.0 * i, "charts/FPS": 400.0 * i, "losses/entropy": 1.0 / i, "offpolicy/ess": 0.9}
    faults = {"faults/total": 2.0, "faults/sampler": 2.0}
    return {**stages, **shares, **lag, **rest, **faults, "offpolicy/kl_behavior_proximal": 0.01}


@pytest.fixture
def reported(fabricate, typed, tmp_path):
    """A run with everything a page shows; returns (folder, page)."""
    folder = fabricate("a<1>", [1.0, 2.0, 3.5, None], extra=row, **{"optim.lr": 2.5e-4})
    (folder / "log.txt").write_text("2026-01-01 00:00:00 sampler-1 died <SIGKILL> & was replaced\n")
    (folder / "checkpoints/000000004000").mkdir(parents=True)
    (folder / "checkpoints/000000004000/model.safetensors").write_bytes(b"x" * 2_500_000)
    (folder / "videos").mkdir()
    (folder / "videos/best game.mp4").write_bytes(b"")
    code, out, line = typed("report", folder)
    assert (code, line) == (0, "")
    assert f"written: {folder}/report.html" in out
    return folder, (folder / "report.html").read_text()


def test_the_page_is_whole_and_needs_nothing_else(reported):
    _, text = reported
    page = Page(text)
    assert page.tags.count("svg") >= 8
    assert "script" not in page.tags
    assert page.links == ["videos/best%20game.mp4", "videos/best%20game.mp4"]
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert len(text) < 1_000_000


def test_the_page_says_what_the_folder_says(reported):
    _, text = reported
    said = " ".join(" ".join(Page(text).text).split())
    for words in (
        "a<1>", "minatar/breakout", "stop.env-steps reached (exit 0)", "training return", "3.5", "4k",
        "sampler-1 died <SIGKILL> & was replaced", "000000004000", "2.5 MB", "faults/sampler", "optim.lr 2.5e-4 1e-3",
        "effective sample size", "settings at their defaults",
    ):  # fmt: skip
        assert words in said, words


def test_the_lag_histogram_weighs_rows_by_their_steps(reported):
    _, text = reported
    assert "<title>0: 50.00 %</title>" in text  # rows 1 and 2 of 4, 1000 steps each
    assert "<title>2: 50.00 %</title>" in text


def test_a_run_without_a_histogram_says_so(fabricate, typed):
    folder = fabricate("old", [1.0, 2.0], extra=lambda i: {"lag/mean": 1.0, "lag/p95": 2.0, "lag/max": 2.0})
    typed("report", folder)
    said = (folder / "report.html").read_text()
    assert "No histogram" in said
    assert "share of all steps" not in said


def test_a_book_that_does_not_balance_is_told(fabricate, typed):
    folder = fabricate("a", [1.0])
    for trained, verdict in ((8, "it balances"), (7, "it does NOT balance")):
        book = f'{{"sampled": 10, "trained": {trained}, "skipped": 1, "discarded": 0, "in_flight": 1}}'
        (folder / "status.json").write_text(f'{{"state": "finished", "exit": 0, "sentence": "x", "ledger": {book}}}')
        typed("report", folder)
        assert verdict in (folder / "report.html").read_text()


@pytest.mark.parametrize("returns", [[], [None], [1.0]])
def test_a_run_that_has_hardly_begun_has_a_page_too(fabricate, typed, returns):
    folder = fabricate("a", returns)
    (folder / "status.json").write_text('{"state": "running", "pid": 4194305}')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_ste')
    code, _, line = typed("report", folder)
    assert (code, line) == (0, "")
    text = (folder / "report.html").read_text()
    assert "ended without a last word" in text
    assert ("no row of metrics yet" in text) == (not returns)
    page = Page(text)
    assert not re.search(r"\b(nan|inf)\b", " ".join(page.text))
    assert "nan" not in text.replace("minatar", "")


def test_links_start_where_the_page_lies(fabricate, typed, tmp_path):
    folder = fabricate("a", [1.0])
    (folder / "x.mp4").write_bytes(b"")
    (tmp_path / "pages").mkdir()
    typed("report", folder, "-o", tmp_path / "pages/a.html")
    assert set(Page((tmp_path / "pages/a.html").read_text()).links) == {"../runs/a/x.mp4"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("", "expected one runs/NAME, got none"),
        ("runs/absent", "runs/absent does not exist"),
        ("runs/a --optim.lr 1", "report shows a run as it is"),
        ("runs/a -o absent/x.html", "the folder absent does not exist"),
    ],
)
def test_a_mistake_in_report_is_one_sentence(fabricate, typed, words, answer):
    fabricate("a", [1.0])
    code, _, line = typed("report", *words.split())
    assert code == 2
    assert answer in line


def test_a_long_run_stays_a_small_page(fabricate, typed):
    draws = np.random.default_rng(0)
    folder = fabricate("long", draws.normal(size=20_000).tolist(), extra=row)
    typed("report", folder)
    assert (folder / "report.html").stat().st_size < 500_000


# -- charts


def test_thinning_keeps_every_spike():
    y = np.zeros(10_000)
    y[1234], y[8765] = 7.0, -3.0
    _, kept = svg._thinned(np.arange(10_000.0), y)
    assert len(kept) <= svg.POINTS + 1
    assert {7.0, -3.0} <= set(kept.tolist())


def test_a_line_is_broken_where_nothing_is_known():
    drawn = svg.lines(np.arange(1.0, 6.0), [svg.Line("a", np.array([1.0, 2.0, np.nan, 3.0, 4.0]))], str)
    (path,) = re.findall(r'class="c0 line" d="([^"]*)"', drawn)
    assert [piece.count("L") for piece in path.split("M")[1:]] == [1, 1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 1e6), (0.001, 0.0011), (2.0, 2.0)])
def test_ticks_are_round_and_inside(low, high):
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


# -- in a browser


@pytest.mark.browser
def test_chromium_reads_the_page_and_draws_its_curves(reported, tmp_path):
    from matplotlib.image import imread

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no Chromium here: install one, or leave out -m browser"
    folder, _ = reported
    url, picture = (folder / "report.html").as_uri(), tmp_path / "page.png"

    def browse(*words):
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", profile, *quiet, *words, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    read = browse("--dump-dom", "--enable-logging=stderr")
    page = Page(read.stdout)
    assert page.tags.count("svg") >= 8
    assert "training return" in " ".join(page.text)
    assert "CONSOLE" not in read.stderr
    browse("--window-size=1200,2400", f"--screenshot={picture}")
    seen = (imread(picture)[..., :3] * 255).round().astype(int)
    blue = (abs(seen - (0x00, 0x72, 0xB2)).sum(axis=-1) < 12).sum()
    assert blue > 1000, "curves and bars are drawn in the first colour"
