"""Populations: rounds, takeovers, the same command again. The trainer is a fake; real runs are in tests/system."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sfactory.cli import main as cli
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.config.toml_file import from_toml, to_toml
from sfactory.population import launchers, population, side_by_side
from sfactory.population.publication import evaluated
from sfactory.run import checkpoint
from sfactory.run.checkpoint import Contents
from sfactory.run.checkpoint_writer import save
from sfactory.run.history import read_history
from sfactory.supervisor import specs

BASE = ("pbt", "minatar/breakout", "--members", "4", "--jobs", "2", "--dir", "p", "--period", "10k", "--start", "0")
BASE += ("--stop.env-steps", "40k", "--sample", "optim.lr=1e-5,1e-3", "--mutation-rate", "1")
SKIP = 3
"""Frames of a step."""
ROUNDS = (*BASE, "--exchange", "rounds", "--replace", "0.5")


class Trainer:
    """A fake launcher: a round is trained in two polls. Skill, the only weight, grows by the learning rate x steps."""

    reruns = False

    def __init__(self):
        self.started, self.codes, self.most, self.running, self.sent, self.on_poll = [], {}, 0, 0, [], None

    def submit(self, command, resources):
        *arguments, _, file = command.arguments[3:]
        config = from_toml(Path(file))
        assert command.arguments[3:-2] in (["train"], ["resume", config.run.dir])
        self.started.append((arguments[0], command.name, end_of(config)))
        self.running += 1
        self.most = max(self.most, self.running)
        code = self.codes.get(command.name, [0]).pop(0) if self.codes.get(command.name) else 0
        return SimpleNamespace(poll=self.poller(config, code), cancel=self.sent.append)

    def poller(self, config, code):
        polls = []

        def poll():
            polls.append(1)
            if self.on_poll:
                self.on_poll()
            if len(polls) < 2:
                return None
            self.running -= 1
            found = 130 if self.sent else code
            trained(config, found)
            return found

        return poll

    def close(self):
        pass


def end_of(config):
    """Steps at which a round ends."""
    return min(config.stop.frames // SKIP or config.stop.env_steps, config.stop.env_steps)


def train(config, code):
    """Write what a run leaves: a checkpoint at the end of the round (half of it if it fails), status, settings."""
    folder = Path(config.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(to_toml(config))
    newest = checkpoint.read_newest(folder, ("model",))
    before, skill = (newest.state["env_steps"], newest.parts["model"]["w"]) if newest else (0, torch.zeros(1).double())
    end = end_of(config)
    if code:
        end = (before + end) // 2
    skill = skill + config.optim.lr * (end - before)
    score = float(skill)
    returns = [score - 0.1, score + 0.1] * 50
    state = {
        "env_steps": end, "frames": end, "updates": end // 100, "seconds": 1.0, "skipped_updates": 0, "launch": 0,
        "lr": config.optim.lr, "kl": 0.0, "ess": 1.0, "training_return": score,
        "episodes": {"count": end // 10, "complete": True, "returns": [returns], "lengths": [1.0] * 100},
    }  # fmt: skip
    save(folder, Contents(state, {part: {"w": skill} for part in checkpoint.PARTS}), keep=3)
    words = {0: "finished", 130: "interrupted", 9: "non-finite", 6: "environment fault"}
    status = {"state": words.get(code, "running"), "exit": code, "env_steps": end, "pid": 4194300}
    (folder / "status.json").write_text(json.dumps(status))


trained = train


@pytest.fixture
def trainer(monkeypatch):
    fake = Trainer()
    monkeypatch.setitem(launchers.LAUNCHERS, "local", lambda *_: fake)
    monkeypatch.setattr(side_by_side, "POLL_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(specs, "read_specs", lambda config: [SimpleNamespace(frame_skip=SKIP, rows=1)])
    return fake


def decisions(history):
    """(round, member, source) of every takeover."""
    return [(record.round, record.member, record.source) for record in history.records if record.source is not None]


def test_pbt_trains_every_member_round_by_round_and_names_the_winner(trainer, typed):
    code, _, line = typed(*ROUNDS)
    history = read_history(Path("p"))
    assert code == 0
    best = max(history.records[-4:], key=lambda record: record.score)
    assert history.winner == best.member
    assert [record.error for record in history.records] == pytest.approx([0.01] * 16), "0.1 / sqrt(100)"
    found = (
        f"{len(decisions(history))} takeovers; the winner is p/m{best.member} with score {best.score:.4g} (optim.lr="
    )
    assert line.startswith(f"sfactory: finished (exit 0): 4 members, {found}")
    assert trainer.most == 2
    ends = [end for _, name, end in trainer.started if name == "m2"]
    assert ends == [10_000, 20_000, 30_000, 40_000]
    assert [command for command, name, _ in trainer.started if name == "m2"] == ["train", *["resume"] * 3]
    assert [(record.round, record.member) for record in history.records] == [
        (r, m) for r in range(1, 5) for m in range(4)
    ]
    assert {record.env_steps for record in history.records if record.round == 3} == {30_000}
    assert from_toml(Path("p/m2/config.toml")).stop.frames == 0, "the finished run has the settings of an ordinary one"
    assert [from_toml(Path(f"p/m{member}/config.toml")).run.seed for member in range(4)] == [1, 2, 3, 4]
    assert f"the winner is p/m{best.member}" in Path("p/report.html").read_text()


def test_pbt_replaces_the_bad_half_by_the_good_one_at_the_first_exchange(trainer, typed):
    typed(*ROUNDS)
    first = read_history(Path("p")).records[:4]
    bad = [record for record in first if record.settings["optim.lr"] == 1e-5]
    assert len(bad) == 2
    for record in bad:
        assert first[record.source].settings["optim.lr"] == 1e-3
        assert 6e-4 < record.next_settings["optim.lr"] < 1.6e-3
        assert (
            f"takes over m{record.source} (10,000 steps) after round 1"
            in Path(f"p/m{record.member}/log.txt").read_text()
        )
        later = next(one for one in read_history(Path("p")).of(record.member) if one.round == 2)
        assert later.settings == record.next_settings
        assert later.score == pytest.approx(10.0 + 10_000 * record.next_settings["optim.lr"]), (
            "from the leader's policy"
        )


def test_pbt_exchanges_nothing_before_start_and_after_the_last_round(trainer, typed):
    typed(*ROUNDS, "--start", "20k")
    assert {round for round, _, _ in decisions(read_history(Path("p")))} == {2, 3}
    shutil.rmtree("p")
    typed(*ROUNDS, "--start", "40k")
    assert decisions(read_history(Path("p"))) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--start", "30k"], ""),
        (["--start", "40k"], "with --period 10,000 and --start 40,000;"),
        (["--start", "0", "--period", "40k"], "with --period 40,000 and --start 0;"),
        (["--start", "35k", "--period", "30k"], "with --period 30,000 and --start 35,000;"),
    ],
)
def test_pbt_says_that_nothing_is_exchanged(trainer, tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main([*ROUNDS, *options])
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sfactory: note: ")]
    assert len(notes) == bool(told)
    assert not told or f"nothing is exchanged: members end at stop.env-steps 40,000, {told}" in notes[0]
    assert bool(decisions(read_history(Path("p")))) is not bool(told)


def test_pbt_anytime_compares_a_member_with_what_others_have_published_so_far(trainer, typed):
    code, _, _ = typed(*BASE, "--replace", "0.5", "--exchange", "anytime", "--jobs", "1")
    history = read_history(Path("p"))
    assert code == 0
    assert [record.round for record in history.records] == sorted(record.round for record in history.records)
    bad = [m for m in range(4) if history.initial[m]["optim.lr"] == 1e-5]
    taken = decisions(history)
    assert {member for _, member, _ in taken} >= set(bad)
    published = set()
    for record in history.records:
        published.add(record.member)
        if record.source is not None:
            assert len(published) == 4, "two worst and two best"
            assert record.source not in bad or record.round > 1


def test_pbt_anytime_takes_the_newest_checkpoint_of_the_leader(trainer, typed):
    typed(*BASE, "--replace", "0.5", "--exchange", "anytime", "--jobs", "4")
    history = read_history(Path("p"))
    for number, record in enumerate(history.records):
        if record.source is not None:
            steps = [one.env_steps for one in history.records[:number] if one.member == record.source]
            assert record.source_steps >= steps[-1]


def test_pbt_uses_the_evaluation_of_this_policy_where_there_is_one(tmp_path):
    rows = [(1000, 5.0, 1000), (2000, float("nan"), float("nan")), (3000, 7.0, 2500)]
    keys = ("env_steps", "eval/episodic_return", "eval/env_steps")
    lines = [json.dumps({"seconds": 1.0, **dict(zip(keys, row, strict=True))}).replace("NaN", "null") for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert evaluated(tmp_path, -1) == 7.0
    assert evaluated(tmp_path, 2000) == 7.0
    assert evaluated(tmp_path, 2500) is None, "of the policy before the takeover"
    assert evaluated(tmp_path / "none", -1) is None


# -- failures


def test_pbt_member_whose_losses_are_not_finite_takes_over_another_one(trainer, typed):
    trainer.codes = {"m1": [9]}
    code, _, _ = typed(*ROUNDS[:-1], "0.3", "--gap", "1000")
    history = read_history(Path("p"))
    assert code == 0
    (failed,) = [record for record in history.records if record.failed]
    assert (failed.round, failed.member, failed.score, failed.env_steps) == (1, 1, None, 5_000)
    assert decisions(history) == [(1, 1, failed.source)]
    assert [end for _, name, end in trainer.started if name == "m1"] == [10_000, 20_000, 30_000, 40_000]


def test_pbt_anytime_member_whose_losses_are_not_finite_waits_for_the_first_score(trainer, typed):
    trainer.codes = {"m0": [9], "m1": [9]}
    code, _, _ = typed(*BASE, "--exchange", "anytime", "--jobs", "1", "--gap", "1000")
    history = read_history(Path("p"))
    assert code == 0
    assert [(record.member, record.failed) for record in history.records[:3]] == [(2, False), (0, True), (1, True)]
    assert decisions(history) == [(1, 0, 2), (1, 1, 2)]
    assert [len(history.of(member)) for member in range(4)] == [4] * 4


def unknown_scores(monkeypatch, rounds):
    """Let no episode end in these rounds."""
    known = population.publication

    def publication(plan, history, member, round, failed):
        record = known(plan, history, member, round, failed)
        return replace(record, score=None) if round in rounds else record

    monkeypatch.setattr(population, "publication", publication)


def test_pbt_member_whose_losses_are_not_finite_waits_in_rounds_for_the_first_score(trainer, typed, monkeypatch):
    unknown_scores(monkeypatch, [1])
    trainer.codes = {"m1": [9]}
    arguments = (*ROUNDS[:-1], "0.3", "--gap", "1000")
    code, _, _ = typed(*arguments)
    whole = read_history(Path("p"))
    assert code == 0
    assert [(record.round, record.source is None) for record in whole.of(1) if record.failed] == [(1, True), (2, False)]
    assert [(round, member) for round, member, _ in decisions(whole)] == [(2, 1)]
    assert [len(whole.of(member)) for member in range(4)] == [4] * 4
    assert [end for _, name, end in trainer.started if name == "m1"] == [10_000, 30_000, 40_000]
    shutil.rmtree("p")
    trainer.codes = {"m1": [9], "m2": [0, 6]}
    assert typed(*arguments)[0] == 6, "the command ends in the second round"
    assert typed(*arguments)[0] == 0
    assert read_history(Path("p")) == whole


def test_pbt_in_rounds_goes_on_with_a_member_that_failed_last_and_had_no_leader(trainer, typed, monkeypatch):
    unknown_scores(monkeypatch, [1, 2, 3, 4])
    trainer.codes = {"m1": [0, 0, 0, 9]}
    code, _, line = typed(*ROUNDS)
    assert (code, "m1: losses were not finite, and no other member can be taken over" in line) == (9, True)
    trainer.started.clear()
    code, _, line = typed(*ROUNDS)
    assert (code, "no score is known" in line) == (0, True)
    assert trainer.started == [("resume", "m1", 40_000)]
    assert [len(read_history(Path("p")).of(member)) for member in range(4)] == [4] * 4


@pytest.mark.parametrize("exchange", ["rounds", "anytime"])
def test_pbt_ends_if_the_losses_of_no_member_are_finite(trainer, typed, exchange):
    trainer.codes = {f"m{member}": [9] for member in range(4)}
    code, _, line = typed(*BASE, "--exchange", exchange)
    assert (code, "m0: losses were not finite, and no other member can be taken over" in line) == (9, True)
    assert len(trainer.started) == 4


def test_pbt_starts_a_member_again_that_was_killed(trainer, typed):
    trainer.codes = {"m1": [0, -9, -15, 130]}
    code, _, _ = typed(*ROUNDS)
    assert code == 0
    assert [name for _, name, end in trainer.started if end == 20_000].count("m1") == 4
    assert [record.env_steps for record in read_history(Path("p")).of(1)] == [10_000, 20_000, 30_000, 40_000]


def test_pbt_goes_on_with_a_member_that_was_stopped_after_its_last_checkpoint(trainer, typed, monkeypatch):
    """A resume finds nothing to do, ends with 0, and leaves the status of the stopped run."""
    assert typed(*ROUNDS)[0] == 0
    whole = read_history(Path("p"))
    shutil.rmtree("p")

    def stopped(config, code):
        train(config, code)
        path = Path(config.run.dir) / "status.json"
        path.write_text(path.read_text().replace('"finished"', '"terminated"'))

    monkeypatch.setattr(sys.modules[__name__], "trained", stopped)
    assert typed(*ROUNDS)[0] == 0
    assert read_history(Path("p")) == whole


def test_pbt_gives_up_a_member_that_is_killed_before_it_gets_anywhere(trainer, typed, monkeypatch):
    monkeypatch.setattr(population.Population, "_saved_steps", lambda self, member: 0)
    trainer.codes = {"m1": [-9] * 20}
    code, _, line = typed(*ROUNDS)
    assert (code, "m1: killed by signal 9; output in p/logs/m1.txt" in line) == (7, True)
    assert len([name for _, name, _ in trainer.started if name == "m1"]) == population.MOST_LOST + 1


def test_pbt_reports_a_member_that_failed_and_goes_on_when_repeated(trainer, typed):
    trainer.codes = {"m1": [0, 6]}
    code, _, line = typed(*ROUNDS)
    assert (code, "m1: exit 6; output in p/logs/m1.txt" in line) == (6, True)
    assert not read_history(Path("p")).finished
    trainer.started.clear()
    Path("p/staged/m3-r9").mkdir()  # of a decision that was not recorded
    assert typed(*ROUNDS)[0] == 0
    assert list(Path("p/staged").iterdir()) == []
    assert trainer.started[0] == ("resume", "m1", 20_000)
    assert len(read_history(Path("p")).records) == 16


# -- the same command again


def test_pbt_that_has_finished_answers_at_once(trainer, typed):
    first = typed(*ROUNDS)
    trainer.started.clear()
    again = typed(*ROUNDS)
    assert (again, trainer.started) == (first, [])
    code, out, _ = typed(*ROUNDS, "--json")
    assert (code, json.loads(out)["winner"]) == (0, read_history(Path("p")).winner)


def test_pbt_signal_is_forwarded_and_the_same_command_has_the_same_history(trainer, typed):
    typed(*ROUNDS)
    whole = read_history(Path("p"))
    shutil.rmtree("p")
    polls = []

    def interrupt():
        polls.append(1)
        if len(polls) == 13:
            os.kill(os.getpid(), signal.SIGINT)

    trainer.on_poll = interrupt
    code, _, line = typed(*ROUNDS)
    assert (code, trainer.sent[0], "repeat the command to continue" in line) == (130, signal.SIGINT, True)
    trainer.on_poll = None
    trainer.sent.clear()
    assert typed(*ROUNDS)[0] == 0
    assert read_history(Path("p")) == whole


@pytest.mark.sampled(2)
@pytest.mark.parametrize("killed_in", ["stage", "write_history", "install"])
@pytest.mark.parametrize("exchange", ["rounds", "anytime"])
def test_pbt_killed_in_the_middle_of_an_exchange_has_the_same_history(trainer, typed, monkeypatch, killed_in, exchange):
    arguments = (*BASE, "--replace", "0.5", "--exchange", exchange, "--jobs", "1")
    typed(*arguments)
    whole, weights = read_history(Path("p")), newest_weights()
    assert decisions(whole)
    shutil.rmtree("p")
    called = getattr(population, killed_in)
    fails_at = {"stage": (2,), "write_history": (2, 3, 4), "install": (1, 2)}[killed_in]
    for number in fails_at:
        calls = []

        def killed(*arguments, calls=calls, number=number):
            calls.append(1)
            if len(calls) == number:
                raise KeyboardInterrupt
            return called(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(population, killed_in, killed)
            assert typed(*arguments)[0] == 130
    assert typed(*arguments)[0] == 0
    assert read_history(Path("p")) == whole
    assert newest_weights() == weights
    assert list(Path("p/staged").iterdir()) == []


def newest_weights():
    return [float(checkpoint.read_newest(Path(f"p/m{m}"), ("model",)).parts["model"]["w"]) for m in range(4)]


# -- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("minatar/breakout", "--dir: a population needs a folder"),
        ("minatar/breakout --dir p --members 1", "--members: must be at least 2, got 1"),
        ("minatar/breakout --dir p --replace 0.6", "--replace: must be greater than 0 and at most 0.5, got 0.6"),
        (
            "minatar/breakout --dir p --period 100 --stop.env-steps 100",
            "--period: must be at least the 2,048 steps of an update, got 100",
        ),
        (
            "minatar/breakout --dir p --period 4k --stop.env-steps 4k --batch.factor 0.5",
            "--period: must be at least the 4,096 steps of an update, got 4,000",
        ),
        ("minatar/breakout --dir p --eval.every 6M", "eval.every: must be at most --period (5,000,000), got 6,000,000"),
        ("minatar/breakout --dir p --run.dir x", "run.dir: a population sets it itself; use --dir"),
        ("minatar/breakout --dir p --stop.seconds 9", "stop.seconds: a population sets it itself; it ends by stop.env"),
        ("classic/acrobot --dir p --stop.env-steps 0", "stop.env-steps: must be greater than 0"),
        ("minatar/breakout --dir p --mutate model.hidden", "model.hidden cannot change in the middle of a run"),
        ("minatar/breakout --dir p --sampling.auto", "sampling.auto: members train side by side"),
        ("minatar/breakout --dir p --mutation-rate 2", "--mutation-rate: must be between 0 and 1, got 2"),
        ("minatar/breakout --dir p --sample optim.lr=-1..1", "optim.lr is"),
        ("minatar/breakout --dir p --slurm partition=x", "only --launcher slurm has such options"),
    ],
)
def test_pbt_reports_usage_errors_before_it_starts_a_run(trainer, typed, tmp_path, arguments, message):
    code, out, line = typed("pbt", *arguments.split())
    assert (code, out) == (2, "")
    assert message in line
    assert (trainer.started, list(tmp_path.iterdir())) == ([], [])


def test_pbt_reads_a_file_with_every_setting_and_refuses_what_it_sets_itself(trainer, typed):
    Path("all.toml").write_text(to_toml(build(*target_layers("minatar/breakout"), {})))
    assert typed(*BASE, "--config", "all.toml", "--stop.env-steps", "20k")[0] == 0
    Path("own.toml").write_text("[stop]\nseconds = 9.0\n")
    code, _, line = typed(*BASE, "--config", "own.toml")
    assert (code, "stop.seconds: a population sets it itself" in line) == (2, True)


@pytest.mark.parametrize(("period", "refused"), [("6143", True), ("6144", False)])
def test_pbt_compares_the_period_with_the_agent_steps_of_an_update(trainer, typed, monkeypatch, period, refused):
    """A round is counted in agent steps: three agents take 3 x 2,048 of them in an update."""
    monkeypatch.setattr(specs, "read_specs", lambda config: [SimpleNamespace(frame_skip=1, rows=3)])
    code, _, line = typed("pbt", "minatar/breakout", "--dir", "p", "--period", period, "--stop.env-steps", "6144")
    assert code == (2 if refused else 0), line
    wanted = "--period: must be at least the 6,144 agent steps of an update, got 6,143"
    assert (wanted in line) == refused


@pytest.mark.parametrize("sampled", ["8,128", "128,8"])
def test_pbt_compares_the_period_with_the_largest_update_of_a_member(trainer, typed, sampled):
    words = ("--members", "2", "--sample", f"sampling.rollout-length={sampled}", "--period", "2048")
    code, _, line = typed("pbt", "minatar/breakout", "--dir", "p", *words, "--stop.env-steps", "2048")
    assert code == 2
    assert "--period: must be at least the 4,096 steps of an update, got 2,048" in line


def test_pbt_refuses_the_folder_of_another_population(trainer, typed):
    typed(*ROUNDS)
    changes = [
        ("--gap", "3"), ("--stop.env-steps", "50k"), ("--surrogate.clip", "0.3"), ("--run.seed", "5"),
        ("--mutate", "optim.lr,trace.gamma"), ("--exchange", "anytime"),
    ]  # fmt: skip
    for flag, value in changes:
        code, _, line = typed(*ROUNDS, flag, value)
        name = flag if flag in ("--gap", "--mutate", "--exchange") else flag.removeprefix("--")
        assert code == 2
        assert f"p holds a population with another {name}; choose another --dir" in line


def test_pbt_refuses_a_folder_of_something_else(trainer, typed):
    Path("p").mkdir()
    Path("p/thesis.txt").touch()
    code, _, line = typed(*ROUNDS)
    assert (code, "p holds thesis.txt, but no population" in line) == (2, True)
