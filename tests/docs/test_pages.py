"""The documentation is about this program: pages that are made are up to date, names are all there, links lead on."""

import importlib.util
import re
import typing

import pytest
from documents import DOCUMENTS, ROOT, blocks, commands, flags

from sfactory.algo.proximal import PROXIMALS
from sfactory.algo.scaling import RULES
from sfactory.algo.schedule import SCHEDULES
from sfactory.algo.surrogate import BEHAVIOR_WEIGHTS, SURROGATES
from sfactory.algo.trace import TRACES
from sfactory.cli import main as cli
from sfactory.config import parsing, presets
from sfactory.config.flags import split_flags
from sfactory.monitor.messages import METRICS

DOCS = ROOT / "docs"


def load_make():
    spec = importlib.util.spec_from_file_location("docs_make", DOCS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_what_the_script_writes():
    assert load_make().stale() == [], "say: python docs/make.py"


def test_a_page_that_was_edited_by_hand_is_noticed(tmp_path, monkeypatch):
    make = load_make()
    monkeypatch.setattr(make, "HERE", tmp_path)
    for name in make.PAGES:
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    assert make.stale() == []
    page = tmp_path / "metrics.md"
    page.write_text(page.read_text().replace("unclipped", "clipped"))
    assert make.stale() == ["metrics.md"]


def test_every_setting_and_every_metric_has_its_row():
    settings_page, metrics_page = ((DOCS / name).read_text() for name in ("configuration.md", "metrics.md"))
    for name in parsing.field_types():
        assert f"| `--{parsing.flag_name(name)}` |" in settings_page
    for name in METRICS:
        assert f"| `{name}` |" in metrics_page


@pytest.mark.parametrize(
    ("setting", "registry"),
    [
        ("trace.estimator", TRACES),
        ("proximal.policy", PROXIMALS),
        ("surrogate.objective", SURROGATES),
        ("surrogate.behavior-weight", BEHAVIOR_WEIGHTS),
        ("batch.rule", RULES),
        ("optim.schedule", SCHEDULES),
    ],
)
def test_every_algorithm_has_a_row_with_its_flag(setting, registry):
    text = (DOCS / "algorithms.md").read_text()
    rows = set(re.findall(rf"^\| `--{setting} (\w+)` \|", text, re.MULTILINE))
    assert rows == set(registry)


def anchors(document):
    """Where a link behind # may lead."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(document):
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in found:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_both_maps():
    for page in DOCS.glob("*.md"):
        if page.name != "README.md":
            assert f"(docs/{page.name})" in (ROOT / "README.md").read_text()
            assert f"({page.name})" in (DOCS / "README.md").read_text()


def test_the_readme_is_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 3 * 55


def test_pictures_are_small_and_shown():
    shown = "".join(document.read_text() for document in DOCUMENTS)
    pictures = sorted((DOCS / "pictures").iterdir())
    assert len(pictures) >= 3
    for picture in pictures:
        assert picture.stat().st_size < 300_000, picture.name
        assert f"pictures/{picture.name})" in shown


# -- what is typed


def check(words):
    """Parse a command line without running it."""
    command = words[0]
    assert command in cli.COMMANDS, command
    if len(words) == 1 or "--help" in words or "--help-all" in words:  # a command alone, within a sentence
        return
    options = cli.parse(words)
    if command in ("train", "sweep", "bench", "profile", "verify-resume", "check-env"):
        target = options.word
        ours = target == target.upper() or target.startswith(("mygames/", "FAMILY"))  # a placeholder, an example's own
        parsing.build(*presets.target_layers("classic/cartpole" if ours else target), options.settings)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_the_documents_would_be_understood(document):
    for words in commands(document):
        if not is_example_of_extending(words):
            check(words)


def is_example_of_extending(words):
    """Commands whose algorithm exists once the example before them was added; test_extending runs them."""
    return words[-4:-2] in (["--surrogate.objective", "bounded"], ["--trace.estimator", "cut"])


@pytest.mark.parametrize("wrong", ["trane minatar/breakout", "train minatar/breakout --optim.lrr 1", "eval a --greed"])
def test_a_command_that_would_not_be_understood_is_noticed(wrong):
    with pytest.raises((AssertionError, ValueError)):
        check(wrong.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_within_a_sentence_exists_with_its_value(document):
    for words in flags(document):
        if len(words) == 1:
            parsing.check_name(words[0].lstrip("-").replace("-", "_"), words[0])
            continue
        layer, _, positionals = split_flags(words, {})
        assert not positionals, words
        for name, given in layer.items():
            choices = typing.get_args(parsing.field_types().get(name))
            if choices and isinstance(choices[0], str):
                assert given.value in choices, words


def test_every_make_target_script_and_hook_that_is_named_exists():
    text = "".join(document.read_text() for document in DOCUMENTS)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE))
    assert {"train", "test", "docs"} <= named <= targets
    scripts = set(re.findall(r"(?:python |`)((?:benchmarks|docs)/[\w/]+\.py)", text))
    assert len(scripts) >= 5
    assert not [script for script in scripts if not (ROOT / script).is_file()]
    assert re.findall(r"repo: (\S+)", (ROOT / ".pre-commit-config.yaml").read_text()) == ["local"]


def test_the_documents_have_commands_at_all():
    assert len(commands(ROOT / "README.md")) >= 20
    assert sum(len(commands(document)) for document in DOCUMENTS) >= 45
    assert len(blocks(DOCS / "extending.md", "python")) >= 7
