"""Documentation: generated pages are up to date, names are complete, links and commands are valid."""

import ast
import importlib.util
import inspect
import re
import textwrap
import tomllib
import typing

import pytest
from documents import DOCUMENTS, ROOT, blocks, commands, flags

from sfactory.algo.proximal import PROXIMALS
from sfactory.algo.scaling import RULES
from sfactory.algo.schedule import SCHEDULES
from sfactory.algo.surrogates.options import MASK_USES
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.algo.trace import TRACES
from sfactory.algo.weight_rule import BEHAVIOR_WEIGHTS
from sfactory.cli import main as cli
from sfactory.config import parsing, presets, values
from sfactory.config.algorithms import ALGORITHMS
from sfactory.config.flags import split_flags
from sfactory.monitor.table import METRICS
from sfactory.supervisor.lockstep import Lockstep

DOCS = ROOT / "docs"


def load_make():
    spec = importlib.util.spec_from_file_location("docs_make", DOCS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date():
    assert load_make().stale() == [], "run: python docs/make.py"


def test_stale_finds_a_generated_page_that_was_edited(tmp_path, monkeypatch):
    make = load_make()
    monkeypatch.setattr(make, "HERE", tmp_path)
    for name in make.PAGES:
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    assert make.stale() == []
    page = tmp_path / "metrics.md"
    page.write_text(page.read_text().replace("unclipped", "clipped"))
    assert make.stale() == ["metrics.md"]


def test_every_setting_and_every_metric_has_a_row():
    settings_page, metrics_page = ((DOCS / name).read_text() for name in ("configuration.md", "metrics.md"))
    for name in parsing.field_types():
        assert f"| `--{parsing.flag_name(name)}` |" in settings_page
    for name in METRICS:
        assert f"| `{name}` |" in metrics_page


@pytest.mark.parametrize(
    ("setting", "registry"),
    [
        ("algorithm.name", ALGORITHMS),
        ("trace.estimator", TRACES),
        ("trace.baseline", typing.get_args(parsing.field_types()["trace.baseline"])),
        ("proximal.policy", PROXIMALS),
        ("surrogate.objective", SURROGATES),
        ("surrogate.behavior-weight", BEHAVIOR_WEIGHTS),
        ("surrogate.mask", MASK_USES),
        ("batch.rule", RULES),
        ("optim.schedule", SCHEDULES),
    ],
)
def test_every_algorithm_has_a_row_with_its_flag(setting, registry):
    text = (DOCS / "algorithms.md").read_text()
    rows = re.findall(rf"^\| `--{setting} (\w+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(registry)


def anchors(document):
    """Anchors of the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_exist(document):
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in found:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_index():
    text = (DOCS / "README.md").read_text()
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if f"({page.name})" not in text] == ["README.md"]


def statements(source):
    """The statements of a method as text, without comments and docstring."""
    (function,) = ast.parse(textwrap.dedent(source)).body
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return [ast.unparse(node) for node in body]


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_readme_and_architecture_quote_lockstep_turn_as_it_is(page):
    (block,) = [block for block in blocks(ROOT / page, "py") if block.mark == "turn"]
    assert statements(block.text) == statements(inspect.getsource(Lockstep.turn))


def test_pictures_are_small_and_used():
    text = "".join(document.read_text() for document in DOCUMENTS)
    pictures = sorted(path for path in (DOCS / "pictures").rglob("*") if path.is_file())
    assert len(pictures) >= 3
    for picture in pictures:
        assert picture.stat().st_size < 300_000, picture.name
        assert f"{picture.relative_to(DOCS)})" in text


# -- commands


def check(words):
    """Parse a command line without running it."""
    command = words[0]
    assert command in cli.COMMANDS, command
    if len(words) == 1 or "--help" in words or "--help-all" in words:  # a command alone, within a sentence
        return
    options = cli.parse(words)
    if command in ("train", "sweep", "pbt", "bench", "profile", "verify-resume", "check-env"):
        target = options.word
        ours = target == target.upper() or target.startswith(("mygames/", "FAMILY"))  # a placeholder, an example's own
        parsing.build(*presets.target_layers("classic/cartpole" if ours else target), options.settings)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_parses(document):
    for words in commands(document):
        if not is_example_of_extending(words):
            check(words)


def is_example_of_extending(words):
    """Whether a command uses an algorithm that an example of the page adds; test_extending runs these."""
    return words[-4:-2] in (["--surrogate.objective", "bounded"], ["--trace.estimator", "cut"])


@pytest.mark.parametrize("wrong", ["trane minatar/breakout", "train minatar/breakout --optim.lrr 1", "eval a --greed"])
def test_check_rejects_an_invalid_command(wrong):
    with pytest.raises((AssertionError, ValueError)):
        check(wrong.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_in_a_sentence_exists_with_its_value(document):
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


def test_every_make_target_script_and_hook_in_the_documents_exists():
    text = "".join(document.read_text() for document in DOCUMENTS)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE))
    assert {"train", "test", "docs"} <= named <= targets
    scripts = set(re.findall(r"(?:python |`)((?:benchmarks|docs)/[\w/]+\.py)", text))
    assert len(scripts) >= 5
    assert not [script for script in scripts if not (ROOT / script).is_file()]
    assert re.findall(r"repo: (\S+)", (ROOT / ".pre-commit-config.yaml").read_text()) == ["local"]


def test_the_documents_contain_commands():
    assert len(commands(ROOT / "README.md")) >= 20
    assert sum(len(commands(document)) for document in DOCUMENTS) >= 45
    assert len(blocks(DOCS / "extending.md", "python")) >= 7


def test_the_table_of_settings_of_an_environment_is_true():
    text = (DOCS / "environments.md").read_text().partition("## Settings of an environment")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \| `([^`]+)`.* \|$", text, re.MULTILINE)
    assert len(rows) == text.count("\n| ") - 1  # all but the heading; its rule has no blank
    for typed, toml, python in rows:
        expected = values.plain(ast.literal_eval(python), "")
        assert values.same(values.plain(values.from_text(typed), ""), expected), typed
        assert values.same(values.plain(tomllib.loads(f"x = {toml}")["x"], ""), expected), toml
