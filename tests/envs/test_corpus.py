"""Small environments of every kind that people bring: what `check-env` and `train` say of each, and how they end.

`corpus/` has the environments, each with its expected lines and exit code; see `corpus/base.py`. Everything that
`check-env` calls good must train.
"""

import importlib
import sys
from pathlib import Path

import pytest

from sfactory.cli.main import main

CORPUS = Path(__file__).with_name("corpus")
MODULES = ("pictures", "vectors", "structures", "actions", "results", "arguments")
SHORT = (
    "--run.mode", "lockstep", "--sampling.groups-per-sampler", "1", "--sampling.envs-per-group", "2",
    "--sampling.rollout-length", "8", "--batch.epochs", "1", "--batch.minibatches", "1", "--stop.env-steps", "64",
    "--checkpoint.final", "false",
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


@pytest.mark.parametrize("case", CASES, ids=identity)
def test_check_env_and_train_agree_on(case, tmp_path, capsys):
    code = run("check-env", case.target, "--seconds", "0.2", "--steps", "100", *case.flags)
    checked = capsys.readouterr()
    assert code == (case.code if case.check is None else case.check), checked.out + checked.err
    code = run("train", case.target, "--run.dir", str(tmp_path / "run"), *SHORT, *case.flags)
    trained = capsys.readouterr()
    assert code == case.code, trained.err
    for line in case.lines:
        assert line in " ".join(checked.out.split()), checked.out
        assert line in trained.err, trained.err
    if case.code:
        assert case.says in trained.err.strip().splitlines()[-1]
        assert case.says in checked.out + checked.err
        assert not (tmp_path / "run" / "checkpoints").exists()
    else:
        assert "sfactory train" in checked.out.strip().splitlines()[-1]


def test_the_corpus_has_at_least_sixty_environments():
    assert len({case.target for case in CASES}) >= 60
