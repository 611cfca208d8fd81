"""docs/coming-from.md: its tables of short forms and environments are true, and its examples build what they say."""

import re
import shlex

import pytest
from documents import ROOT, blocks, commands

import sfactory
from sfactory.cli import main as cli
from sfactory.cli.args import config_of
from sfactory.config.flags import split_flags
from sfactory.config.known_envs import instead_of
from sfactory.config.known_names import KNOWN, PROGRAMS
from sfactory.config.parsing import build
from sfactory.config.presets import presets, target_layers
from sfactory.config.short_forms import SHORT_FORMS
from sfactory.errors import SettingError

PAGE = ROOT / "docs" / "coming-from.md"


def section(title):
    """The text of one section."""
    return PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title):
    """Cells of the table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines][1:]


def test_the_page_lists_every_short_form():
    found = [
        (re.search(r"`--(\w+) ", short)[1], long.strip("`")) for short, long in rows("Short forms") if "--" in short
    ]
    assert {short for short, _ in found} == set(SHORT_FORMS)
    for short, long in found:
        sample = "4" if short != "device" else "cpu"
        typed = re.sub(r"(NAME|N|S|X|D)$", sample, long)
        assert split_flags([f"--{short}", sample])[0] == split_flags(shlex.split(typed))[0]


@pytest.mark.parametrize("row", rows("Names of environments"), ids=lambda row: row[1][:30])
def test_the_page_names_environments_as_the_errors_do(row):
    there, here = (re.findall(r"`([^`]+)`", cell) for cell in row)
    assert there
    assert here
    for name in there:
        answer = instead_of(name, presets())
        assert here[0] in answer, name
    for target in here:
        build(*target_layers(target))


def test_the_page_has_every_name_of_every_program():
    for program, title in PROGRAMS.items():
        text = section(f"Names in {title}")
        for known in KNOWN:
            for name in known.names(program):
                assert f"`{name}`" in text


def test_the_message_that_the_page_quotes_is_the_real_one():
    (block,) = blocks(PAGE, "text")
    command, message = block.text.strip().splitlines()
    with pytest.raises(SettingError) as caught:
        cli.parse(shlex.split(command.removeprefix("$ sfactory ")))
    assert message == f"sfactory: usage (exit 2): {caught.value}"


def test_the_examples_have_the_settings_of_the_programs_they_translate():
    cleanrl, sample_factory = (
        config_of(cli.parse(words)) for words in commands(PAGE) if words[0] == "train" and "--steps" in words
    )
    assert (cleanrl.sampling.num_envs, cleanrl.sampling.rollout_length, cleanrl.batch_rows) == (4, 128, 512)
    assert (cleanrl.batch.minibatches, cleanrl.batch.epochs, cleanrl.optim.lr) == (4, 4, 2.5e-4)
    assert (cleanrl.stop.env_steps, cleanrl.sampling.slots_per_group) == (500_000, 1)
    assert sample_factory.env.name == "atari/breakout"
    assert (sample_factory.stop.env_steps, sample_factory.sampling.num_samplers) == (10_000_000, 8)


def test_the_python_example_has_the_rows_it_says(monkeypatch):
    (block,) = blocks(PAGE, "python")
    found = []
    monkeypatch.setattr(
        sfactory, "train", lambda *words, **sections: found.append(sfactory.make_config(*words, **sections))
    )
    exec(block.text, {"__name__": "__main__"})
    (config,) = found
    assert (config.sampling.num_envs, config.batch_rows, config.batch_rows // config.batch.minibatches) == (
        8,
        2048,
        512,
    )
