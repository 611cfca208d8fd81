"""The pages that a newcomer reads first: their commands and examples run, and print the lines that the pages show."""

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import ROOT, blocks, commands, named
from forked_processes import run_forked

import sfactory
from sfactory.cli import main as cli
from sfactory.config import parsing, presets

DOCS = ROOT / "docs"
TOUR, OWN, SETTINGS = (DOCS / name for name in ("quick-tour.md", "your-environment.md", "choosing-settings.md"))
CORRECTIONS, INSTALLING, QUESTIONS = (DOCS / name for name in ("corrections.md", "installing.md", "faq.md"))
LESS = {  # what is added to a command of these pages, so that it takes seconds
    "train": "--stop.env-steps 3k --log.every-seconds 1",
    "resume": "--stop.env-steps 6k",
    "eval": "--episodes 2 --max-steps 50",
    "sweep": "--stop.env-steps 2k --seeds 0..0",
}
pytestmark = pytest.mark.timeout(300)


def run(folder, line, less=None):
    """Run a line of a page in a folder, shortened by `less` or by what LESS says; return stdout and stderr together."""
    less = LESS.get(line.split()[1], "") if less is None else less
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    words = shlex.split(f"{line} {less}")
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = run_forked(words, cwd=folder, env=environment, text=True, timeout=110, **both)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}"
    return done.stdout


def script(folder, text):
    """Run a Python example of a page."""
    (folder / "example.py").write_text(text)
    done = run_forked([sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def lines_of(page, mark):
    """The commands of the bash blocks with a mark."""
    return [line for b in blocks(page, "bash") if b.mark == mark for line in b.text.splitlines()]


def expected(page, mark):
    (block,) = [block for block in blocks(page, "text") if block.mark == mark]
    return block.text


def first_words(text):
    """First word of every line, or the name of a finding; without numbers and the continuation of a wrapped line."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith(" " * 8)]
    words = [line[1] if line[0] in ("ok", "warn") else line[0] for line in lines]
    return [word for word in words if not re.match(r"[\d.]+[kM]?$", word)]


def same_lines(page, mark, output, varying=()):
    """Whether the output has every line of the page, by its first word, in this order."""
    left = iter(first_words(output))
    return [word for word in first_words(expected(page, mark)) if word not in varying and word not in left]


def other_words(page, mark, output):
    """Lines of the page whose words, numbers aside, are those of no line of the output."""
    printed = [re.findall(r"[a-z]+", line.lower()) for line in output.splitlines()]
    lines = [line for line in expected(page, mark).splitlines() if line.strip()]
    return [line for line in lines if re.findall(r"[a-z]+", line.lower()) not in printed]


def test_quick_tour_commands_run_and_print_what_the_page_shows(tmp_path):
    train, watch, report, evaluate, *_ = lines_of(TOUR, "tour")
    assert same_lines(TOUR, "train", run(tmp_path, train)) == []
    run(tmp_path, watch)
    assert "written: runs/tour/report.html" in run(tmp_path, report)
    assert other_words(TOUR, "eval", run(tmp_path, evaluate)) == []
    assert (tmp_path / "cartpole.mp4").stat().st_size > 1000
    (example,) = [block.text for block in blocks(TOUR, "python")]
    assert script(tmp_path, example).strip() in ("0", "1")


@pytest.mark.slow
def test_quick_tour_commands_of_the_harder_task_run(tmp_path):
    train, _, _, _, *harder = lines_of(TOUR, "tour")
    assert len(harder) == 3
    for line in [train, *harder]:
        run(tmp_path, line)
    assert (tmp_path / "curves.png").is_file()


def test_your_environment_is_checked_trained_played_and_filmed(tmp_path):
    new, check, train, evaluate, other = lines_of(OWN, "own")
    run(tmp_path, new)
    assert "# my_env.py\n" + (tmp_path / "my_env.py").read_text() == named(OWN, "my_env.py")
    assert same_lines(OWN, "check", run(tmp_path, check)) == []
    assert same_lines(OWN, "train", run(tmp_path, train), varying=("98.8k",)) == []
    assert other_words(OWN, "eval", run(tmp_path, evaluate)) == []
    assert (tmp_path / "catch.mp4").stat().st_size > 1000
    assert "height" in run(tmp_path, other), "the result names the changed setting"
    assert re.fullmatch(r"\d+ balls caught\n", script(tmp_path, named(OWN, "use.py")))


READ, TYPED = 200, 200
"""Words that a newcomer reads in a minute, also of code and output, and characters that are typed."""


def test_newcomer_has_a_trained_and_filmed_policy_of_an_own_environment_in_ten_minutes():
    """The first page and the four steps. Not counted: installation, and what is changed in the environment."""
    first, steps = (ROOT / "README.md").read_text().partition("## Use")[0], OWN.read_text().partition("## 5.")[0]
    words = re.findall(r"[\w'-]+", re.sub(r"\]\([^)]*\)", "]", first + steps))  # without addresses of links
    typed = "\n".join(["source .venv/bin/activate", *lines_of(OWN, "own")])
    assert len(words) > 1000
    minutes = len(words) / READ + len(typed) / TYPED + 1.0  # a minute of waiting, as the page says
    assert minutes < 10.0, minutes


@pytest.mark.slow
def test_your_environment_is_solved_by_the_command_of_the_page(tmp_path, monkeypatch):
    (tmp_path / "my_env.py").write_text(named(OWN, "my_env.py"))
    _, _, train, *_ = lines_of(OWN, "own")
    subprocess.run([sys.executable, "-m", "sfactory", *shlex.split(train)[1:]], cwd=tmp_path, check=True, timeout=200)
    status = json.loads((tmp_path / "runs/catch/status.json").read_text())
    assert status["training_return"] >= 9, "random actions have 0.17, all balls are 10"
    assert script(tmp_path, named(OWN, "use.py")) == "10 balls caught\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", [SETTINGS, CORRECTIONS], ids=lambda page: page.name)
def test_commands_of_a_page_run_one_after_the_other(page, tmp_path):
    (block,) = blocks(page, "bash")
    for line in block.text.splitlines():
        run(tmp_path, line)
    assert list(tmp_path.glob("*.png"))


def test_forced_lag_of_the_guide_is_exact(tmp_path):
    line = blocks(CORRECTIONS, "bash")[0].text.splitlines()[0]
    run(tmp_path, line, "--stop.env-steps 12k --log.every-updates 1 --batch.epochs 1")
    last = json.loads((tmp_path / "runs/lag8/metrics.jsonl").read_text().splitlines()[-1])
    assert last["lag/mean"] == last["lag/max"] == 8


@pytest.mark.parametrize("page", [SETTINGS, CORRECTIONS, QUESTIONS], ids=lambda page: page.name)
def test_settings_that_a_page_combines_are_accepted_together(page):
    given = re.findall(r"`(--\w+\.[a-z-]+ [^`]+)`", page.read_text())
    several = [words for words in map(shlex.split, given) if "my_net:Wide" not in words]
    assert len(several) >= 1
    for words in several:
        words = ["train", "classic/cartpole", *words]
        if "--batch.forced-lag" in words:
            words = ["2" if word == "k" else word for word in words] + ["--run.mode", "lockstep"]
        parsing.build(*presets.target_layers("classic/cartpole"), cli.parse(words).settings)


def test_names_of_metrics_and_pages_in_choosing_settings_exist():
    from sfactory.monitor.table import find_metric

    table = SETTINGS.read_text().partition("| metric | CartPole")[2].partition("\n\n")[0]
    names = re.findall(r"^\| `([\w/]+)`", table, re.MULTILINE)
    assert len(names) >= 8
    for name in [*names, *re.findall(r"`((?:lag|offpolicy|losses)/\w+)`", CORRECTIONS.read_text())]:
        find_metric(name)


def test_tables_of_the_guide_repeat_measured_figures():
    """A row of six numbers is of two tasks, whose tables are apart."""
    results = ROOT / "benchmarks/results"
    measured = "".join((results / name).read_text() for name in ("stale-data.md", "2026-11-21-staleness-tables.md"))
    rows = re.findall(r"^\| (?:PPO|decoupled|none)[^|]* \| ([\d. |]+) \|$", CORRECTIONS.read_text(), re.MULTILINE)
    assert len(rows) == 11
    tables = [row.split(" | ") for row in rows]
    for numbers in [part for row in tables for part in ((row[:3], row[3:]) if len(row) == 6 else (row,))]:
        lines = [
            line for line in measured.splitlines() if all(f" {n} " in f"{line} ".replace("**", "") for n in numbers)
        ]
        assert lines, numbers


def test_table_of_effective_sample_sizes_is_the_measured_one():
    text = (ROOT / "benchmarks/results/2026-11-21-staleness-tables.md").read_text()
    part = text.partition("## classic/cartpole")[2].partition("Effective sample size")[2].partition("\n## ")[0]
    (row,) = re.findall(r"^\| decoupled PPO, recompute \| (.+) \|$", part, re.MULTILINE)
    assert f"| effective sample size | {row} |" in SETTINGS.read_text()


def test_installing_lists_every_extra_and_no_other():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    table = INSTALLING.read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    named_extras = {
        name for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert named_extras == set(parser["options.extras_require"])


def test_every_extra_that_a_page_installs_exists():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    found = [
        extra
        for page in pages
        for names in re.findall(r"(?:sfactory|\.)\[([\w,]+)\]'", page.read_text())
        for extra in names.split(",")
    ]
    assert len(found) >= 10
    assert set(found) <= set(parser["options.extras_require"])


def test_installing_states_the_oldest_versions_of_setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    text = INSTALLING.read_text()
    (python,) = re.findall(r">=([\d.]+)", parser["options"]["python_requires"])
    (torch,) = re.findall(r"torch>=([\d.]+)", parser["options"]["install_requires"])
    assert f"| Python | {python} or newer" in text
    assert f"| torch | {torch} or newer" in text


def test_citation_has_the_version_and_invents_no_person():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["authors"] == [{"name": "sfactory developers"}]
    assert citation["version"] == sfactory.__version__
    entry = QUESTIONS.read_text()
    assert f"version = {{{sfactory.__version__}}}" in entry
    assert f"title   = {{{citation['title']}}}" in entry


def test_python_examples_of_these_pages_are_all_run():
    assert len(blocks(TOUR, "python")) == 1
    assert {block.text.partition("\n")[0] for block in blocks(OWN, "python")} == {"# my_env.py", "# use.py"}
    for page in (SETTINGS, CORRECTIONS, INSTALLING, QUESTIONS):
        assert blocks(page, "python") == []


def test_reference_has_every_public_name_and_its_parameters():
    text = (DOCS / "api.md").read_text()
    for name in sfactory.__all__:
        if not name.startswith("_"):
            assert f"\n### {name}\n" in text
    shown = re.findall(r"```py\n(sfactory\.train\(.*?\) -> \w+)\n```", text, re.DOTALL)
    assert len(shown) == 1
    assert "\n### export\n" in text


def test_gallery_names_presets_that_exist():
    text = (DOCS / "gallery.md").read_text()
    curves = re.findall(r"^\[!\[Learning curve of ([\w/]+)\]", text, re.MULTILINE)
    rows = re.findall(r"^\| `([\w/]+)` \|", text.partition("| preset | steps")[2], re.MULTILINE)
    assert len(curves) >= 5
    assert len({*curves, *rows}) >= 15
    families = {default.name.removesuffix("*") for default in presets.family_defaults()}  # tasks with their settings
    others = {*curves, *rows} - {preset.name for preset in presets.presets()}
    assert {name.rpartition("/")[0] + "/" for name in others} <= families


def test_commands_of_starting_pages_are_found():
    assert len(commands(TOUR)) >= 8
    assert len(commands(OWN)) >= 5
