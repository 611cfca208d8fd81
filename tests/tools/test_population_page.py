"""The page of a population: lineage, curves, settings, winner."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from sfactory.config import with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.config.toml_file import to_toml
from sfactory.run.history import History, Record
from sfactory.tools import svg
from sfactory.tools.lineage import founders, lineage
from sfactory.tools.population_page import population_page

A, B, C = {"optim.lr": 1e-3}, {"optim.lr": 1e-5}, {"optim.lr": 1.3e-3}
RECORDS = (
    Record(0, 1, 1000, 8.0, 0.1, A, next_settings=A),
    Record(1, 1, 1010, 2.0, 0.1, B, source=0, source_steps=1000, next_settings=C),
    Record(2, 1, 1020, None, 0.0, B, failed=True, source=1, source_steps=1010, next_settings=C),
    Record(0, 2, 2000, 9.0, 0.1, A, next_settings=A),
    Record(1, 2, 2010, 12.5, 0.1, C, next_settings=C),
    Record(2, 2, 2020, 11.0, 0.1, C, next_settings=C),
)


@pytest.fixture
def folder(tmp_path):
    """A population named <b>pbt</b>, whose third member has no folder yet."""
    folder = tmp_path / "<b>pbt<"
    config = build(*target_layers("minatar/breakout"))
    for member in range(2):
        run = folder / f"m{member}"
        run.mkdir(parents=True)
        (run / "config.toml").write_text(to_toml(with_settings(config, {"optim.lr": 1e-3})))
        rows = [
            {"env_steps": step, "seconds": 1.0, "charts/episodic_return": step / 100 + member} for step in (500, 2000)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "status.json").write_text(json.dumps({"state": "finished", "env_steps": 2000 + member, "exit": 0}))
    return folder


def page(folder, winner=1):
    return population_page(folder, History({"seed": 3, "members": 3}, [A, B, B], RECORDS, winner, winner is not None))


def test_founders_follow_takeovers_in_the_order_of_the_decisions():
    assert founders(3, RECORDS) == [[0, 0, 0], [1, 0, 0], [2, 0, 0]], "2 took what 1 had just taken from 0"
    assert founders(3, RECORDS[:1]) == [[0, 0], [1], [2]]


def test_population_page_names_the_winner_as_an_ordinary_run(folder):
    html = page(folder)
    assert "the winner is" in html
    for command in ("eval", "resume", "export", "report"):
        assert re.search(rf"sfactory {command} \S*/&lt;b&gt;pbt&lt;/m1", html.replace("&#39;", "")), command
    assert "not finished" in page(folder, winner=None)
    assert "sfactory resume" not in page(folder, winner=None)


def test_population_page_is_well_formed_and_self_contained(folder):
    html = page(folder)
    assert "<b>pbt<" not in html
    assert not re.search(r"<script|<link|https?://|url\(", html)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 6, "lineage and return, also for narrow screens; score; one setting"
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_population_page_draws_a_line_per_takeover_in_the_color_of_the_founder(folder):
    lineage = re.search(r"<svg[^>]*lineage.*?</svg>", page(folder), re.DOTALL)[0]
    takeovers = re.findall(r'<path class="(\w+) line takeover"[^>]*><title>(.*?)</title>', lineage)
    assert [color for color, _ in takeovers] == ["c0", "c0"]
    assert takeovers[0][1] == "m1 at 1,010 steps: score 2; takes over m0 (1,000 steps), then optim.lr=1.3e-3"
    assert takeovers[1][1].startswith("m2 at 1,020 steps: score failed; takes over m1")
    colors = re.findall(r'<path class="(c\d) line" d', lineage)
    assert colors == ["c0", "c0", "c1", "c0", "c2", "c0"]


def test_population_page_shows_members_takeovers_and_settings(folder):
    html = page(folder)
    assert (
        "<td>m1</td><td>finished</td><td>2,001</td><td>12.5</td><td>optim.lr=1.3e-3</td><td>m0 after round 1</td>"
        in html
    )
    assert "<td>m2</td><td>not started</td><td>0</td><td>11</td>" in html
    assert "<td>1</td><td>m1</td><td>1,010</td><td>2</td><td>m0 at 1,000</td><td>optim.lr 1e-5 to 1.3e-3</td>" in html
    assert '<i class="c1"></i>m1 <b>0.0013</b>' in html, "the newest value of the setting"
    setting = re.findall(r"<svg.*?</svg>", html, re.DOTALL)[-1]
    assert {"0.0001", "0.001"} <= set(re.findall(r'text-anchor="end">(.*?)<', setting)), "a logarithmic axis"
    changed = re.search(r'<path class="c1 line" d="(.*?)"', setting)[1]
    places = [tuple(map(float, place.split())) for place in re.split("[ML]", changed)[1:]]
    change = next(number for number, (_, y) in enumerate(places) if y != places[0][1])
    assert places[change][0] == places[change - 1][0] > places[0][0], "a step, and no slope"
    assert '<i class="c1"></i>m1 <b>21</b>' in html, "the newest return"


def many(rounds):
    return [
        Record(
            m,
            n,
            1000 * n + m,
            1.0,
            0.1,
            A,
            source=1 - m if n % 4 == m else None,
            source_steps=1000 * n,
            next_settings=A,
        )
        for n in range(1, rounds + 1)
        for m in range(2)
    ]


def places(drawing, member):
    """Horizontal places of the rounds of a member."""
    row = re.findall(r'<circle class="c\d bar" cx="([\d.]+)" cy="([\d.]+)" r="4"><title>m(\d)', drawing)
    return [float(x) for x, _, number in row if number == str(member)]


@pytest.mark.parametrize("space", [svg.WIDE[0], svg.NARROW[0]])
@pytest.mark.parametrize("rounds", [3, 60])
def test_lineage_keeps_the_rounds_apart_and_scrolls_if_they_need_more_space(space, rounds):
    drawing = lineage(2, many(rounds), space)
    width = int(re.search(r'viewBox="0 0 (\d+) ', drawing)[1])
    at = places(drawing, 0)
    assert len(at) == rounds
    assert min(after - before for before, after in pairwise(at)) >= 23.5
    assert max(at) + 4 < width
    names = re.findall(r">(m\d)</text>", drawing)
    if rounds == 3:
        assert (width, names) == (space, ["m0", "m1"])
        assert "scroll" not in drawing
    else:
        assert names == ["m0", "m0", "m1", "m1"], "at both ends"
        assert drawing.startswith(f'<div class="scroll"><div style="min-width:{width}px"><svg')


def test_lineage_draws_an_early_takeover_from_afar_beside_the_names_of_the_members():
    far = Record(9, 1, 1000, 1.0, 0.1, A, source=0, source_steps=1000, next_settings=A)
    own = [Record(0, n, 1000 * n, 1.0, 0.1, A, next_settings=A) for n in range(1, 31)]
    drawing = lineage(10, [far, *own], svg.NARROW[0])
    assert float(re.search(r"Q([-\d.]+) ", drawing)[1]) >= 42


@pytest.mark.parametrize("space", [svg.WIDE[0], svg.NARROW[0]])
def test_lineage_has_labels_of_steps_that_do_not_touch(space):
    for rounds in (1, 7, 60):
        drawing = lineage(2, many(rounds), space)
        at = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">', drawing)]
        assert len(at) >= 2
        assert min(after - before for before, after in pairwise(at)) > 6 * svg.CHARACTER


MEASURE = """<body style="margin:0"><iframe src="{url}" style="border:0;width:400px;height:900px"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const shown = [...page.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().width);
  const scales = shown.map(one => one.getBoundingClientRect().width / one.viewBox.baseVal.width);
  document.title = JSON.stringify({{
    width: page.documentElement.scrollWidth, scales, names: shown.map(one => one.getAttribute("aria-label")),
    box: shown[0].parentElement.parentElement.clientWidth, drawing: shown[0].getBoundingClientRect().width,
  }});
}}</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("rounds", [6, 60])
def test_chromium_shows_a_population_on_a_phone_with_readable_letters(folder, tmp_path, rounds):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "Chromium is not installed: install it or omit -m browser"
    (tmp_path / "page.html").write_text(population_page(folder, History({"seed": 3}, [A, B], tuple(many(rounds)))))
    (tmp_path / "frame.html").write_text(MEASURE.format(url=(tmp_path / "page.html").as_uri()))
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", *quiet,
        "--allow-file-access-from-files", "--virtual-time-budget=5000", "--window-size=500,900", "--hide-scrollbars",
        "--dump-dom", (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert found["width"] == 400, "the page does not scroll sideways"
    assert found["names"][0] == "lineage of the members"
    assert min(found["scales"]) > 0.9, "letters of 11 pixels are drawn with at least 10"
    if rounds == 60:
        assert found["drawing"] > 1000 > 400 > found["box"], "the drawing scrolls in its own box"


def test_population_page_has_no_curves_before_the_first_row(tmp_path):
    html = population_page(tmp_path, History({"seed": 3}, [A, B], RECORDS[:1]))
    assert "Lineage" in html
    assert "training return" not in html
