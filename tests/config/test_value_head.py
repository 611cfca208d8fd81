"""`model.value-head` and `model.pooling`: what they are refused with, in one line before anything starts."""

import pytest

from sfactory.config import parsing, presets
from sfactory.config.flags import split_flags
from sfactory.config.resume_rules import Rule, rule_of
from sfactory.errors import SettingError

BINS = ("--model.value-head", "hl_gauss")


def config(target, *flags):
    return parsing.build(*presets.target_layers(target), split_flags(flags)[0])


def refusal(target, *flags):
    with pytest.raises(SettingError) as caught:
        config(target, *flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_of_the_value_head_are_those_of_the_paper():
    found = config("minatar/breakout", *BINS)
    assert (found.model.value_bins, found.model.value_low, found.model.value_high) == (151, -10.0, 10.0)
    assert found.loss.value_sigma == 0.75
    assert config("minatar/breakout").model.value_head == "scalar"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--model.value-low", "3", "--model.value-high", "3"), "model.value-low 3 is not below model.value-high 3"),
        (("--loss.value-clip", "0.2"), "loss.value-clip 0.2 clips a squared error"),
        (("--surrogate.objective", "bpo"), "surrogate.median-head true and model.value-head hl_gauss exclude"),
        (("--model.network", "my_net:Mine"), "model.value-head hl_gauss and model.network my_net:Mine exclude"),
        (("--algorithm.name", "dae"), "model.value-head hl_gauss has no effect: algorithm.name dae does not use it"),
        (("--algorithm.name", "ppg"), "model.value-head hl_gauss has no effect: algorithm.name ppg does not use it"),
        (("--algorithm.name", "pqn"), "model.value-head hl_gauss has no effect: algorithm.name pqn does not use it"),
        (("--model.value-bins", "1"), "model.value-bins is 1; it must be between 2 and 4096"),
    ],
)
def test_value_head_with_bins_is_refused_with_what_it_cannot_be_combined_with(flags, line):
    assert line in refusal("minatar/breakout", *BINS, *flags)


def test_value_head_with_bins_is_accepted_with_every_surrogate_and_trace_that_reads_values():
    for words in (
        ("--surrogate.objective", "bpo", "--surrogate.median-head", "false"),
        ("--trace.estimator", "vtrace", "--model.core", "none", "--model.separate", "true"),
        ("--proximal.policy", "ewma", "--normalize.value-targets", "true", "--loss.value-sigma", "2"),
    ):
        assert config("minatar/breakout", *BINS, *words).model.value_head == "hl_gauss"


def test_settings_of_the_bins_are_refused_without_them():
    for flags in (("--model.value-bins", "51"), ("--model.value-low", "-5"), ("--loss.value-sigma", "1")):
        assert "has no effect without model.value-head hl_gauss" in refusal("minatar/breakout", *flags)


def test_pooling_is_accepted_with_the_encoder_that_has_it():
    assert config("procgen/coinrun", "--model.pooling", "average").model.pooling == "average"
    assert config("procgen/coinrun").model.pooling == "none"
    for encoder in ("auto", "nature", "minatar", "my_net:Wide"):
        line = refusal("atari/pong", "--model.encoder", encoder, "--model.pooling", "average")
        assert "model.pooling average has no effect without model.encoder impala; set that, or leave it out" in line
    own = ("--model.network", "my_net:Mine", "--model.encoder", "impala", "--model.pooling", "average")
    assert "model.encoder impala has no effect with model.network; leave one out" in refusal("atari/pong", *own)


def test_a_resume_refuses_another_head_and_tells_another_sigma():
    for name in ("value-head", "value-bins", "value-low", "value-high", "pooling"):
        assert rule_of(f"model.{name}") is Rule.REFUSED
    assert rule_of("loss.value-sigma") is Rule.WARNS
