"""Stop rules: which hold, what is said, and that a raised one holds no longer."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfactory.config import Stop
from sfactory.config.parsing import build
from sfactory.errors import resume_command
from sfactory.run.stop_rules import Progress, raised_settings, reached_rules, sentence_of

OFF = Stop(env_steps=0)


@pytest.mark.parametrize(
    ("stop", "progress", "sentence"),
    [
        ({"env_steps": 50_000}, Progress(env_steps=50_176), "stop.env-steps 50,000 was reached (50,176)"),
        ({"env_steps": 50_000}, Progress(env_steps=49_999), ""),
        ({"frames": 400}, Progress(env_steps=100, frames=400), "stop.frames 400 was reached (400)"),
        ({"seconds": 1.5}, Progress(seconds=1.75), "stop.seconds 1.5 was reached (1.75)"),
        ({"target_return": 0.0}, Progress(settled_return=0.0), "stop.target-return 0 was reached (0)"),
        ({"target_return": -20.0}, Progress(settled_return=-19.5), "stop.target-return -20 was reached (-19.5)"),
        ({"target_return": -20.0}, Progress(), ""),
        ({}, Progress(9, 9, 9.0, 9.0), ""),
        (
            {"env_steps": 5, "seconds": 2.0},
            Progress(env_steps=5, seconds=3.0),
            "stop.env-steps 5 was reached (5) and stop.seconds 2 was reached (3)",
        ),
    ],
)
def test_reached_rules_are_named_with_their_values(stop, progress, sentence):
    assert sentence_of(reached_rules(replace(OFF, **stop), progress)) == sentence


def test_every_stop_rule_of_the_schema_has_a_value():
    assert {rule.name for rule in fields(Stop)} == {"env_steps", "frames", "seconds", "target_return"}
    everything = Stop(1, 1, 1.0, 1.0)
    assert len(reached_rules(everything, Progress(1, 1, 1.0, 1.0))) == len(fields(Stop))


NUMBERS = st.floats(1e-3, 1e9)


@given(
    limit=NUMBERS,
    share=st.floats(1.0, 10.0),
    target=st.floats(-1e6, 1e6),
    above=st.one_of(st.just(0.0), st.floats(0.0, 1e3)),
)
def test_the_proposed_command_raises_every_rule_above_what_was_reached(limit, share, target, above):
    value = limit * share
    stop = Stop(int(limit) + 1, int(limit) + 1, limit, target)
    progress = Progress(int(value) + 2, int(value) + 2, value, target + above)
    rules = reached_rules(stop, progress)
    assert len(rules) == 4
    words = resume_command("runs/a", raised_settings(rules)).split()[3:]
    names, values = (word.removeprefix("--") for word in words[::2]), words[1::2]
    from sfactory.config.parsing import RawValue

    raised = build({name.replace("-", "_"): RawValue(value) for name, value in zip(names, values, strict=True)}).stop
    assert reached_rules(raised, progress) == []
