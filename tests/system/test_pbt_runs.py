"""Populations of real runs: bad members take over good ones, and kills change nothing that lockstep members learn."""

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from forked_processes import ForkedCommand, run_forked
from run_helpers import command

from sfactory.run.history import read_history
from sfactory.run.reader import read_status

LOCKSTEP = ["--run.mode", "lockstep", "--run.device", "cpu", "--checkpoint.every-seconds", "0.3"]
SMALL = [*LOCKSTEP, "--members", 2, "--jobs", 2, "--replace", 0.5, "--sample", "optim.lr=1,2e-3", "--period", "2k"]
SMALL += ["--start", 0, "--mutation-rate", 1, "--stop.env-steps", "4k"]


def pbt(folder, *options):
    return command("pbt", "classic/cartpole", "--dir", folder, *options)


def finish(arguments, seconds=110):
    done = run_forked(arguments, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr.splitlines()


def members_of(process):
    """The processes of members: `sfactory train` and `sfactory resume`."""
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def curves(folder):
    """Rows of metrics of every member, without what depends on time or on the load of the machine."""
    names = ("env_steps", "charts/episodic_return", "losses/value_loss", "losses/policy_loss", "charts/learning_rate")
    found = {}
    for path in sorted(folder.glob("m*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [[row.get(name) for name in names] for row in rows]
    return found


def trained(folder):
    """Steps of all members."""
    return sum(read_status(member).get("env_steps", 0) for member in folder.glob("m*"))


def finish_with_kills(folder, options, steps, victims, seed):
    """Run the command until it ends by itself. steps: of all members at the end.

    victims: for each kill, whether it hits the command or a member. They happen at random steps, not times: so both do
    before the end, and after some training, on any machine.
    """
    dice, victims, arguments = random.Random(seed), list(victims), pbt(folder, *options)
    moments = sorted(dice.uniform(0, 0.8 * steps) for _ in victims)
    kills = 0
    while True:
        process = ForkedCommand(arguments, stderr=subprocess.PIPE, text=True)
        while victims and process.poll() is None:
            members = members_of(process)
            if not members or trained(folder) < moments[kills]:
                time.sleep(0.05)
                continue
            victim = process.pid if victims.pop(0) == "command" else dice.choice(members).pid
            os.kill(victim, signal.SIGKILL)
            kills += 1
        _, err = process.communicate(timeout=200)
        if process.returncode != -signal.SIGKILL:
            return process.returncode, err, kills


def test_pbt_killed_twice_has_the_history_of_an_unkilled_population_bit_for_bit(tmp_path):
    lines = finish(pbt(tmp_path / "whole", *SMALL))
    code, err, kills = finish_with_kills(tmp_path / "killed", SMALL, 8_000, ["member", "command"], seed=1)
    assert (code, kills) == (0, 2), err[-3000:]
    whole, killed = (read_history(tmp_path / name) for name in ("whole", "killed"))
    assert killed == whole
    assert len(whole.records) == 4
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    (taken,) = [record for record in whole.records if record.source is not None]
    assert (taken.round, taken.settings["optim.lr"]) == (1, 1.0)
    assert lines[-1].startswith("sfactory: finished (exit 0): 2 members, 1 takeovers; the winner is")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1])
def test_pbt_killed_ten_times_has_the_history_of_an_unkilled_population_bit_for_bit(tmp_path, seed):
    options = [*LOCKSTEP, "--members", 4, "--jobs", 2, "--replace", 0.5, "--sample", "optim.lr=1e-5,2e-3"]
    options += ["--period", "4k", "--start", "4k", "--mutation-rate", 1, "--stop.env-steps", "16k"]
    finish(pbt(tmp_path / "whole", *options), 300)
    clock = random.Random(seed)
    victims = [clock.choice(["member", "member", "command"]) for _ in range(10)]
    code, err, kills = finish_with_kills(tmp_path / "killed", options, 64_000, victims, seed)
    assert (code, kills) == (0, 10), err[-3000:]
    whole, killed = (read_history(tmp_path / name) for name in ("whole", "killed"))
    assert killed == whole
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")
    bad = [record for record in whole.records if record.round == 1 and record.settings["optim.lr"] == 1e-5]
    assert len(bad) == 2
    assert all(record.next_settings["optim.lr"] > 1e-3 for record in bad), "after the first exchange"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pbt_member_whose_losses_are_not_finite_goes_on_from_another_one_without_lockstep(tmp_path):
    options = ["--members", 2, "--jobs", 2, "--period", "8k", "--start", 0, "--mutation-rate", 0, "--gap", 1000]
    options += ["--sample", "env.reward_scale=9e18,1e-18", "--loss.value-coef", 9e18, "--stop.env-steps", "24k"]
    finish(pbt(tmp_path, *options, "--normalize.reward", "false"), 250)
    history = read_history(tmp_path)
    (failed,) = [record for record in history.records if record.failed]
    assert (failed.round, failed.settings["env.reward_scale"]) == (1, 9e18)
    assert failed.source == 1 - failed.member
    last = history.of(failed.member)[-1]
    assert (last.round, last.settings["env.reward_scale"], last.env_steps >= 24_000) == (3, 1e-18, True)
    rows = (tmp_path / f"m{failed.member}/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["env_steps"] for row in rows]
    assert steps == sorted(set(steps))
