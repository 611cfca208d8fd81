"""The report page: complete, self-contained, and consistent with the run folder."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from sfactory.monitor.table import LAG_SHARES, STAGES
from sfactory.run import provenance
from sfactory.run.reader import RunFolder, read_run
from sfactory.tools import report, svg
from sfactory.tools.report import RETURN, content

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Parse a page and fail on tags that are not closed."""

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
        assert self.open, f"</{tag}> without a start tag"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def row(i):
    """A complete row of metrics with numbers that grow with i."""
    stages = {f"stage/{kind}/{stage}": 1 / len(names) for kind, names in STAGES.items() for stage in names}
    shares = {f"lag/share_{name}": float(name == ("0" if i < 3 else "2")) for name in LAG_SHARES}
    lag = {"lag/mean": 1.5, "lag/p95": 2.0, "lag/max": 3.0}
    rest = {"charts/SPS": 100.0 * i, "charts/FPS": 400.0 * i, "losses/entropy": 1.0 / i, "offpolicy/ess": 0.9}
    faults = {"faults/total": 2.0, "faults/sampler": 2.0, "faults/broken_share": 0.033}
    return {**stages, **shares, **lag, **rest, **faults, "offpolicy/kl_behavior_proximal": 0.01}


@pytest.fixture
def reported(fabricate, typed, tmp_path):
    """A run with everything a page can show; returns (folder, page)."""
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


def test_report_page_is_well_formed_and_self_contained(reported):
    _, text = reported
    page = Page(text)
    assert page.tags.count("svg") >= 8
    assert "script" not in page.tags
    assert page.links == ["videos/best%20game.mp4", "videos/best%20game.mp4"]
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert len(text) < 1_000_000


def test_report_page_shows_the_content_of_the_folder(reported):
    _, text = reported
    visible = " ".join(" ".join(Page(text).text).split())
    for text in (
        "a<1>", "minatar/breakout", "stop.env-steps reached (exit 0)", "training return", "3.5", "4k",
        "sampler-1 died <SIGKILL> & was replaced", "000000004000", "2.5 MB", "faults/sampler", "optim.lr 2.5e-4 1e-3",
        "effective sample size", "settings at their defaults", "broken episodes", "faults/broken_share 3.3%",
    ):  # fmt: skip
        assert text in visible, text


def test_report_does_not_name_the_environment_twice():
    named = report._protocol
    assert named("cloudpickle:lambda-22e8", "cloudpickle:lambda-22e8") == named("gymnasium/Ant-v5", "Ant-v5") == ""
    assert named("minatar/breakout", "minatar-v1") == "minatar-v1"


def test_report_lag_histogram_weights_rows_by_their_steps(reported):
    _, text = reported
    assert "<title>0: 50.00 %</title>" in text  # rows 1 and 2 of 4, 1000 steps each
    assert "<title>2: 50.00 %</title>" in text


def test_report_notes_a_missing_lag_histogram(fabricate, typed):
    folder = fabricate("old", [1.0, 2.0], extra=lambda i: {"lag/mean": 1.0, "lag/p95": 2.0, "lag/max": 2.0})
    typed("report", folder)
    html = (folder / "report.html").read_text()
    assert "No histogram" in html
    assert "share of all steps" not in html


def test_report_has_a_curve_of_broken_episodes_only_if_there_are_any(fabricate, typed):
    folder = fabricate("sound", [1.0, 2.0], extra=lambda i: {"faults/broken_share": 0.0})
    typed("report", folder)
    assert "broken episodes" not in (folder / "report.html").read_text()


def test_report_says_whether_row_counts_are_consistent(fabricate, typed):
    folder = fabricate("a", [1.0])
    for trained, verdict in ((8, "in flight; consistent"), (7, "NOT consistent")):
        counts = f'{{"sampled": 10, "trained": {trained}, "skipped": 1, "discarded": 0, "in_flight": 1}}'
        (folder / "status.json").write_text(f'{{"state": "finished", "exit": 0, "sentence": "x", "ledger": {counts}}}')
        typed("report", folder)
        assert verdict in (folder / "report.html").read_text()


@pytest.mark.parametrize("returns", [[], [None], [1.0]])
def test_report_handles_a_run_with_hardly_any_rows(fabricate, typed, returns):
    folder = fabricate("a", returns)
    (folder / "status.json").write_text('{"state": "running", "pid": 4194305}')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_ste')
    code, _, line = typed("report", folder)
    assert (code, line) == (0, "")
    text = (folder / "report.html").read_text()
    assert "killed; no outcome was recorded" in text
    assert ("no row of metrics yet" in text) == (not returns)
    page = Page(text)
    assert not re.search(r"\b(nan|inf)\b", " ".join(page.text))
    assert "nan" not in text.replace("minatar", "")


def test_report_links_are_relative_to_the_page(fabricate, typed, tmp_path):
    folder = fabricate("a", [1.0])
    (folder / "x.mp4").write_bytes(b"")
    (tmp_path / "pages").mkdir()
    typed("report", folder, "-o", tmp_path / "pages/a.html")
    assert set(Page((tmp_path / "pages/a.html").read_text()).links) == {"../runs/a/x.mp4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "expected one runs/NAME, got none"),
        ("runs/absent", "runs/absent does not exist"),
        ("runs/a --optim.lr 1", "report shows a run as it is"),
        ("runs/a -o absent/x.html", "the folder absent does not exist"),
    ],
)
def test_report_usage_errors_are_one_line(fabricate, typed, arguments, message):
    fabricate("a", [1.0])
    code, _, line = typed("report", *arguments.split())
    assert code == 2
    assert message in line


def test_report_of_a_long_run_is_a_small_page(fabricate, typed):
    generator = np.random.default_rng(0)
    folder = fabricate("long", generator.normal(size=20_000).tolist(), extra=row)
    typed("report", folder)
    assert (folder / "report.html").stat().st_size < 500_000


def test_report_escapes_markup_from_the_run_folder(fabricate, typed):
    folder = fabricate("x", [1.0])
    (folder / "log.txt").write_text("<script>alert(1)</script> & more\n")
    (folder / "status.json").write_text('{"state": "finished", "exit": 0, "sentence": "<b onclick=x>bold</b>"}')
    typed("report", folder)
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags
    assert "<b onclick=x>bold</b>" in " ".join(page.text)


# -- charts


def test_svg_extremes_keep_every_spike():
    y = np.zeros(10_000)
    y[1234], y[8765] = 7.0, -3.0
    _, kept = svg._extremes(np.arange(10_000.0), y)
    assert len(kept) <= svg.MAX_POINTS + 1
    assert {7.0, -3.0} <= set(kept.tolist())


def test_svg_draws_a_curve_of_one_value_as_a_dot():
    assert svg.lines(np.arange(1.0, 4.0), [svg.Line("a", np.array([np.nan, 2.0, np.nan]))], str).count("<circle") == 1
    assert "<circle" not in svg.lines(np.arange(1.0, 4.0), [svg.Line("a", np.array([1.0, 2.0, 3.0]))], str)


def test_svg_axis_of_zeros_begins_at_zero_and_ends_at_one():
    """The lag of a lockstep run: an axis from -0.025 to 0.05 looked like a measurement."""
    drawn = svg.lines(np.arange(1.0, 4.0), [svg.Line("lag", np.zeros(3))], lambda x: "x")
    labels = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn) if text != "x"]
    assert (labels[0], labels[-1]) == ("0", "1")
    constant = svg._range(np.full(3, -2.0), False)
    assert constant[0] < -2.0 < constant[1]


@pytest.mark.parametrize(
    ("value", "text"), [(6e-6, "6e-6"), (1.25e8, "1.25e8"), (0.0031, "0.0031"), (4560.0, "4,560"), (-2e-9, "-2e-9")]
)
def test_svg_number_has_exponents_as_settings_have_them(value, text):
    assert svg.number(value) == text


def test_svg_lines_are_interrupted_at_missing_values():
    drawn = svg.lines(np.arange(1.0, 6.0), [svg.Line("a", np.array([1.0, 2.0, np.nan, 3.0, 4.0]))], str)
    (path,) = re.findall(r'class="c0 line" d="([^"]*)"', drawn)
    assert [piece.count("L") for piece in path.split("M")[1:]] == [1, 1]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 1e6), (0.001, 0.0011), (2.0, 2.0)])
def test_svg_ticks_are_inside_the_range(low, high):
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


# -- in a browser


@pytest.mark.browser
def test_chromium_renders_the_report_page(reported, tmp_path):
    from matplotlib.image import imread

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "Chromium is not installed: install it or omit -m browser"
    folder, _ = reported
    url, picture = (folder / "report.html").as_uri(), tmp_path / "page.png"

    def browse(*options):
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", profile, *quiet, *options, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    dump = browse("--dump-dom", "--enable-logging=stderr")
    page = Page(dump.stdout)
    assert page.tags.count("svg") >= 8
    assert "training return" in " ".join(page.text)
    assert "CONSOLE" not in dump.stderr
    browse("--window-size=1200,2400", f"--screenshot={picture}")
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    blue = (abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=-1) < 12).sum()
    assert blue > 1000, "curves and bars are drawn in the first color"


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_chromium_shows_the_report_without_cut_labels(width, fabricate, typed, in_chromium):
    def extra(i):
        return row(i) | evaluation(i) | {"losses/value_loss": 123456.0 * i, "losses/policy_loss": -1e-7 * i}

    settings = {"run.dir": "runs/" + "long_name_" * 9, "stop.env_steps": 10**9, "eval.every": 10**8}
    returns = [1e5 * i for i in range(1, 15)]
    folder = fabricate("a_long_name_of_a_run_" * 4, returns, step=10**8, extra=extra, **settings)
    (folder / "checkpoints/001400000000").mkdir(parents=True)
    (folder / "log.txt").write_text("2026-01-01 00:00:00 " + "long/path" * 30 + "\n")
    provenance.record(folder, 1, "")
    typed("report", folder)
    found = in_chromium(folder / "report.html", width)
    assert {"training return", "evaluated return"} <= set(found["shown"])
    assert (found["scrollWidth"], found["clientWidth"]) == (width, width)
    assert found["cut"] == []


# -- evaluations, numbers of info, provenance


def evaluation(i):
    """The i-th row with an evaluation of the policy 100 steps before."""
    scores = {
        "eval/episodic_return": 10.0 - abs(3 - i),
        "eval/iqm": 9.0,
        "eval/std": 1.5,
        "eval/min": 2.0,
        "eval/max": 12.0,
    }
    return {**scores, "eval/episodic_length": 40.0, "eval/env_steps": 1000 * i - 100, "eval/info/is_success": 0.5}


def evaluations_of(html):
    return html[html.index("<h2>Evaluations</h2>") : html.index("<h2>Faults")]


def test_report_shows_the_newest_evaluations_and_the_best(fabricate, typed):
    folder = fabricate("a", [1.0] * 14, extra=evaluation, **{"eval.every": 1000, "eval.episodes": 7})
    typed("report", folder)
    part = evaluations_of((folder / "report.html").read_text())
    assert ": 7 episodes, sampled actions;" in part
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr>(<td.*?)</tr>", part)]
    assert [row[0] for row in rows] == [f"{1000 * i - 100:,}" for i in range(14, 4, -1)] + ["2,900"]
    assert rows[-1] == ["2,900", "10", "9", "1.5", "2", "12", "40", "0.5", "best"]
    assert "best and the newest of 14 evaluations" in part
    assert part.count('<circle class="c0 bar"') >= 14 * 3, "every evaluation is a point of its curves"


def test_report_draws_a_single_evaluation_and_none_without_one(fabricate, typed):
    folder = fabricate("a", [1.0], extra=evaluation)
    typed("report", folder)
    part = evaluations_of((folder / "report.html").read_text())
    assert part.count("<circle") >= 3
    assert re.search(r'<path class="c0 band" d="M[\d. ]+V', part), "the range of its returns"
    folder = fabricate("b", [1.0, 2.0])
    typed("report", folder)
    assert "Evaluations" not in (folder / "report.html").read_text()


def test_report_has_a_curve_of_every_number_of_info(fabricate, typed):
    folder = fabricate("a", [1.0, 2.0], extra=lambda i: {"info/is_success": i / 2, "charts/episodic_return_max": 7.0})
    typed("report", folder)
    visible = " ".join(" ".join(Page((folder / "report.html").read_text()).text).split())
    assert "is_success mean of 100 episodes 1" in visible
    assert "returns of 100 episodes highest 7" in visible


def test_report_says_how_the_first_and_the_newest_launch_were_started(fabricate, typed, monkeypatch):
    folder = fabricate("a", [1.0])
    for number, name in enumerate(("first <b>", "second", "third")):
        monkeypatch.setattr("sys.argv", ["sfactory", "train", name])
        provenance.record(folder, number, "")
    typed("report", folder)
    visible = " ".join(" ".join(Page((folder / "report.html").read_text()).text).split())
    assert "sfactory train 'first <b>'" in visible
    assert "Newest of 3 launches" in visible
    assert "sfactory train third" in visible
    assert "sfactory train second" not in visible


def test_svg_labels_of_an_axis_are_not_cut():
    drawn = svg.lines(np.arange(1.0, 4.0), [svg.Line("a", np.array([-2e-9, 1e-9, 2.5e-9]))], lambda x: "123,456,789")
    for x, anchor, text in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)">(.*?)</text>', drawn):
        width = 6.4 * len(text)
        left, right = (float(x) - width, float(x)) if anchor == "end" else (float(x) - width / 2, float(x) + width / 2)
        assert 0 <= left < right <= svg.SMALL[0], text


def test_report_has_a_drawing_of_wide_charts_for_narrow_screens(reported):
    _, text = reported
    wide, narrow = (f'viewBox="0 0 {width} {height}"' for width, height in (svg.WIDE, svg.NARROW))
    assert text.count(wide) == text.count(narrow) == text.count('<div class="on-narrow">') > 0


@pytest.mark.parametrize(
    ("output", "answer"),
    [("nowhere/page.html", "the folder nowhere does not exist"), ("runs", "runs is a folder; name a file")],
)
def test_report_refuses_a_file_that_cannot_be_written(output, answer, fabricate, typed):
    code, out, line = typed("report", fabricate("a", [1.0]), "-o", output)
    assert (code, out) == (2, "")
    assert answer in line


# -- the numbers in the header


def tiles(folder, typed):
    """Label -> (number, note) of the header of a run's page."""
    typed("report", folder)
    text = (folder / "report.html").read_text()
    return {one[0]: one[1:] for one in re.findall(r"<span>([^<]*)</span><b>([^<]*)</b><small>([^<]*)</small>", text)}


def with_status(folder, **fields):
    """Add fields to the status of a run."""
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, **fields}))
    return folder


@pytest.mark.parametrize(
    ("episodes", "note"),
    [
        (22, "mean of all 22 episodes so far"),
        (100, "mean of the last 100 episodes"),
        (None, "mean of the last 100 episodes"),
    ],
)
def test_report_says_how_many_episodes_the_return_is_the_mean_of(episodes, note, fabricate, typed):
    folder = with_status(fabricate("a", [1.0]), training_return=26.3, episodes=episodes)
    assert tiles(folder, typed)["return"] == ("26.3", note)


def test_report_says_how_many_episodes_of_every_task_are_in_the_return(fabricate, typed):
    folder = fabricate("a", [1.0], target="atari/pong,atari/boxing")
    for episodes, note in ((3, "at least 3 episodes each"), (100, "the last 100 episodes each")):
        assert tiles(with_status(folder, episodes=episodes), typed)["return"][1] == f"mean over tasks of {note}"


@pytest.mark.parametrize(
    ("target", "settings", "note"),
    [
        ("minatar/breakout", {"eval.every": 1000, "eval.episodes": 7}, "mean of 7 episodes, lowest 2, highest 12"),
        ("minatar/breakout", {}, "mean of whole episodes, lowest 2, highest 12"),
        ("atari/pong,atari/boxing", {"eval.every": 1000}, "mean over tasks of 20 episodes each"),
    ],
)
def test_report_header_has_the_newest_evaluation(target, settings, note, fabricate, typed):
    """The training return alone may be far from what the policy reaches in whole episodes."""
    rows = [{RETURN: 1.0, **evaluation(1)}, {RETURN: 1.0, **evaluation(2)}, {RETURN: 1.0}]
    folder = fabricate("a", rows, target=target, **settings)
    assert list(tiles(folder, typed).items())[:2][1] == ("evaluated return", ("9", f"{note}; at 1.9k steps"))


def test_report_header_has_no_evaluation_of_a_run_without_one(fabricate, typed):
    assert "evaluated return" not in tiles(fabricate("a", [1.0]), typed)


def test_report_names_a_protocol_that_is_the_task_itself_only_once(fabricate, monkeypatch):
    for target, protocol, shown in (
        ("gymnasium/CartPole-v1", "CartPole-v1", ""), ("minatar/breakout", "v1, sticky 0.1", "v1, sticky 0.1"),
    ):  # fmt: skip
        monkeypatch.setattr(RunFolder, "protocol", protocol)
        run = read_run(fabricate(protocol, [1.0], target=target))
        assert content(run, run.path)["protocol"] == shown


def test_report_header_has_what_the_run_reached_after_its_last_row(fabricate, typed):
    def extra(i):
        return {"charts/updates": 10.0 * i, "charts/frames": 4000.0 * i}

    folder = with_status(fabricate("a", [1.0, 2.0], extra=extra), env_steps=3000, updates=30, seconds=30.0)
    found = tiles(folder, typed)
    assert found["steps"] == ("3k", "12k frames")
    evaluation = {"eval/iqm": 2.0}
    folder = fabricate("c", [1.0, evaluation], extra=lambda i: {"charts/frames": 1000.0} if i == 1 else {})
    assert tiles(folder, typed)["steps"] == ("2k", "trained"), "the row of an evaluation has no frames"
    folder = fabricate("b", [1.0], extra=lambda i: {"charts/frames": 1000.0 * i})
    assert tiles(folder, typed)["steps"] == ("1k", "trained"), "a frame for every step says nothing new"
    assert found["updates"] == ("30", "100 steps each")
    assert found["speed"][0] == "100/s"


def test_report_header_of_a_run_without_a_row_has_what_the_status_says(fabricate, typed):
    folder = with_status(fabricate("a", []), env_steps=500, updates=4, seconds=5.0)
    found = tiles(folder, typed)
    assert (found["steps"][0], found["updates"][0], found["speed"][0]) == ("500", "4", "100/s")


def test_report_lag_histogram_counts_steps_before_an_evaluation_of_its_own_row(fabricate, typed):
    def extra(i):
        if i == 3:
            return {"eval/env_steps": 2500.0, "eval/episodic_return": 1.0, "eval/iqm": 1.0}
        shares = {f"lag/share_{name}": float(name == ("0" if i < 3 else "2")) for name in LAG_SHARES}
        return {"lag/mean": 1.0, "lag/p95": 2.0, "lag/max": 2.0, **shares}

    folder = fabricate("a", [1.0, 2.0, None, 4.0], extra=extra)  # rows of training at 1000, 2000 and 4000 steps
    typed("report", folder)
    text = (folder / "report.html").read_text()
    assert "<title>0: 50.00 %</title>" in text
    assert "<title>2: 50.00 %</title>" in text
