"""Small environments of every kind that people bring: what `check-env` and `train` say of each, and how they end.

`tests/envs/corpus/` has the environments, each with its expected lines and exit code; see `base.py` there. Everything
that `check-env` calls good must train.
"""

import importlib
import sys
from pathlib import Path

import pytest

from sfactory.cli.main import main

pytestmark = pytest.mark.usefixtures("forked")
CORPUS = Path(__file__).parents[1] / "envs" / "corpus"
MODULES = ("pictures", "vectors", "structures", "actions", "results", "arguments")
SHORT = (
    "--run.mode", "lockstep", "--checkpoint.exact", "false", "--sampling.groups-per-sampler", "1",
    "--sampling.envs-per-group", "2", "--sampling.rollout-length", "8", "--batch.epochs", "1",
    "--batch.minibatches", "1", "--stop.env-steps", "64",
)  # fmt: skip


def cases():
    """Every case of the corpus, in the order of its files."""
    sys.path.insert(0, str(CORPUS))
    try:
        for module in MODULES:
            importlib.import_module(module)
        return list(importlib.import_module("base").CASES)
    finally:
        sys.path.remove(str(CORPUS))


CASES = cases()


def identity(case):
    flags = "".join(f" {word}" for word in case.flags if not word.startswith("--"))
    return f"{case.target}{flags}".replace("/", ".")


@pytest.fixture(autouse=True)
def in_the_corpus(monkeypatch):
    monkeypatch.chdir(CORPUS)
    monkeypatch.syspath_prepend(str(CORPUS))


def run(*words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    return exit_.value.code


@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", CASES, ids=identity)
def test_train(case, tmp_path, capsys):
    code = run("train", case.target, "--run.dir", str(tmp_path / "run"), *SHORT, *case.flags)
    shown = capsys.readouterr().err
    assert code == case.code, shown
    for line in case.lines:
        assert line in shown
    if case.code:
        assert case.says in shown.strip().splitlines()[-1]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("case", CASES, ids=identity)
def test_check_env(case, capsys):
    code = run("check-env", case.target, "--seconds", "0.05", *case.flags)
    shown = capsys.readouterr()
    assert code == (case.code if case.check is None else case.check), shown.out + shown.err
    report = " ".join(f"{shown.out} {shown.err}".split())  # long lines are wrapped
    for line in case.lines:
        assert line in report
    if code:
        assert case.says in report
    else:
        assert shown.out.strip().splitlines()[-1].startswith("sfactory train")


def test_the_corpus_has_at_least_sixty_environments():
    assert len({case.target for case in CASES}) >= 60
