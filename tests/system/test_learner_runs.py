"""Jobs of two ranks: they train together, and what happens when one of them fails or is stopped."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from builders import MY_ENV
from forked_processes import ForkedCommand, run_forked
from ranks_helpers import start_ranks
from run_helpers import all_exited, children, command, rows, steps, wait_for, workers_named
from safetensors.numpy import load_file

from sfactory.run import checkpoint

SMALL = [
    "--sampling.num-samplers", "1", "--sampling.groups-per-sampler", "2", "--sampling.envs-per-group", "4",
    "--sampling.rollout-length", "16", "--batch.minibatches", "1", "--batch.epochs", "1", "--batch.rule", "none",
    "--log.every-seconds", "0.5", "--checkpoint.every-seconds", "1", "--run.device", "cpu",
]  # fmt: skip
LOCKSTEP = ["--run.mode", "lockstep", "--log.every-updates", "5", "--run.debug", "true"]
CARTPOLE = "gymnasium/CartPole-v1"
STALL_S = 6.0
SOAK_KILLS = int(os.environ.get("SFACTORY_SOAK_KILLS", "50"))


class Job:
    """The processes of a job, and how they end."""

    def __init__(
        self,
        run_dir,
        *arguments,
        number=2,
        resume=False,
        target=CARTPOLE,
        of_ranks=None,
        cwd=None,
        shell="",
        popen=subprocess.Popen,
    ):
        """of_ranks: further arguments of each rank. shell: what rank 0 does first, in a mount namespace of its own.

        popen: `ForkedCommand` where only what the ranks compute is looked at, not how they start.
        """
        self.run_dir = Path(run_dir)
        words = ["resume", run_dir] if resume else ["train", target, "--run.dir", run_dir, *SMALL]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        commands = [command(*words, *arguments, *own) for own in of_ranks or [[]] * number]
        if shell:
            own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
            commands[0] = [*own, f"{shell}; exec {shlex.join(commands[0])}"]
        self.processes = start_ranks(commands, popen, cwd=cwd, **pipes)

    def wait_for_steps(self, number):
        wait_for(lambda: steps(self.run_dir) >= number, 60.0, self.processes[0])
        return self

    def worker(self, rank, kind):
        return workers_named(self.processes[rank], kind)[0]

    def all_of(self, rank):
        process = self.processes[rank]
        return [psutil.Process(process.pid), *children(process)]

    def ends(self, seconds=60.0):
        """[(exit code, last line)] of all ranks. Each has one last line at most, and the newest checkpoint loads."""
        self.every = [one for process in self.processes if process.poll() is None for one in children(process)]
        found = []
        deadline = time.monotonic() + seconds
        for process in self.processes:
            _, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            assert len(re.findall(r"^sfactory: .*\(exit \d+\)", err, re.MULTILINE)) <= 1, err
            found.append((process.returncode, (err.strip().splitlines() or [""])[-1]))
        if (self.run_dir / "checkpoints").exists():
            assert checkpoint.newest(self.run_dir) is not None
        return found

    @property
    def codes(self):
        return [code for code, _ in self.ends()]


@pytest.fixture
def job(tmp_path):
    """Starts jobs in one folder; nothing of them is left."""
    jobs = []

    def start(*arguments, **options):
        jobs.append(Job(tmp_path / "run", *arguments, **options))
        return jobs[-1]

    yield start
    left = [psutil.Process(p.pid) for one in jobs for p in one.processes if p.poll() is None]
    for process in [*left, *(child for one in left for child in one.children(recursive=True))]:
        process.kill()
    assert not left


def newest(run_dir):
    return max((Path(run_dir) / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def log_of(run_dir, rank=0):
    return (Path(run_dir) / (f"rank-{rank}" if rank else "") / "log.txt").read_text()


def tensors(checkpoint):
    return {
        f"{part}.{name}": tensor
        for part in ("model", "optimizer", "normalizers")
        for name, tensor in load_file(checkpoint / f"{part}.safetensors").items()
    }


def torchrun_of(ranks):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


# -- training together -----------------------------------------------------------------------------------------


def test_two_ranks_under_torchrun_train_one_policy_and_rank_0_alone_saves(tmp_path):
    run_dir, torchrun = tmp_path / "run", torchrun_of(2)
    words = ["-m", "sfactory", "train", CARTPOLE, "--run.dir", run_dir, *SMALL, *LOCKSTEP, "--stop.env-steps", "2500"]
    done = subprocess.run([*torchrun, *map(str, words)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.strip().splitlines()[-1].startswith("sfactory: finished (exit 0): stop.env-steps 2,500")
    assert done.stdout.count("trained") == 1
    own = rows(run_dir)
    assert own[-1]["charts/updates"] * 2 * 2 * 4 * 16 >= own[-1]["env_steps"] >= 2500  # of both ranks
    of_other = rows(run_dir / "rank-1")
    assert [row["env_steps"] for row in of_other] == [row["env_steps"] for row in own]
    for name in (
        "charts/episodic_return",
        "charts/episodic_length",
        "charts/games",
        "lag/mean",
        "lag/max",
        "lag/share_0",
    ):
        assert [row.get(name) for row in of_other] == [row.get(name) for row in own], name
    assert own[-1]["charts/games"] > 20
    assert newest(run_dir).name == f"{own[-1]['env_steps']:012d}"
    assert json.loads((newest(run_dir) / "state.json").read_text())["world_size"] == 2
    assert not list((run_dir / "rank-1").glob("checkpoints/*"))
    assert not (run_dir / "rank-1" / "tb").exists()
    # Lockstep saved both ranks: their environments are different ones.
    arrays = np.load(newest(run_dir) / "lockstep.npz")
    assert {"arena", "state", "arena.1", "state.1"} <= set(arrays)
    assert arrays["arena"].tobytes() != arrays["arena.1"].tobytes()


@pytest.mark.slow
def test_two_ranks_under_torchrun_learn_cartpole(tmp_path):
    """The preset reaches 200 within 32k to 37k steps of both ranks; a random policy has 20."""
    words = ["-m", "sfactory", "train", "classic/cartpole", "--run.dir", tmp_path / "run", "--quiet"]
    words += ["--sampling.num-samplers", "1", "--stop.target-return", "200", "--stop.env-steps", "100k"]
    done = subprocess.run([*torchrun_of(2), *map(str, words)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sfactory: finished (exit 0): stop.target-return 200 was reached (2" in done.stderr, done.stderr[-3000:]
    assert json.loads((newest(tmp_path / "run") / "state.json").read_text())["world_size"] == 2


RETURN_OF_RANK = f"""
import os
{MY_ENV}
class Env(MyEnv):
    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(int(os.environ["RANK"]) * 2 + 1), terminated, truncated, info
"""


def test_return_of_two_ranks_is_that_of_both_for_the_stop_rule_the_rows_the_checkpoint_and_a_resume(job, tmp_path):
    (tmp_path / "rank_env.py").write_text(RETURN_OF_RANK)
    options = {"target": "rank_env:Env", "cwd": tmp_path, "popen": ForkedCommand}
    one = job("--stop.target-return", "40", "--stop.env-steps", "100k", **options)
    ends = one.ends()
    assert [code for code, _ in ends] == [0, 0]
    assert all("stop.target-return 40 was reached (40)" in line for line in [ends[0][1], log_of(one.run_dir, 1)])
    for rank in ("", "rank-1"):
        status = json.loads((one.run_dir / rank / "status.json").read_text())
        assert (status["training_return"], status["episodes"]) == (40.0, 100)
        assert rows(one.run_dir / rank)[-1]["charts/episodic_return"] == 40.0
    state = json.loads((newest(one.run_dir) / "state.json").read_text())
    assert state["episodes"]["returns"] == [[20.0] * 50 + [60.0] * 50]
    assert state["training_return"] == 40.0
    again = run_forked(command("resume", one.run_dir), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "nothing to do: stop.target-return" in again.stderr, again.stderr


@pytest.mark.slow
def test_return_of_a_short_run_of_two_ranks_has_the_episodes_of_both_that_are_under_way(job, tmp_path):
    """All updates are over before the supervisors have passed on an episode."""
    (tmp_path / "rank_env.py").write_text(RETURN_OF_RANK)
    one = job("--stop.env-steps", "300", target="rank_env:Env", cwd=tmp_path)
    assert one.codes == [0, 0]
    returns = json.loads((newest(one.run_dir) / "state.json").read_text())["episodes"]["returns"][0]
    assert set(returns) == {20.0, 60.0}
    assert rows(one.run_dir)[-1]["charts/games"] == len(returns)


@pytest.mark.slow
def test_one_rank_under_torchrun_in_lockstep_equals_a_run_without_it_bit_for_bit(tmp_path):
    words = [*SMALL, *LOCKSTEP, "--stop.env-steps", "6000"]
    for name, beginning in {"with": [*torchrun_of(1), "-m", "sfactory"], "without": command()}.items():
        line = [*beginning, "train", CARTPOLE, "--run.dir", str(tmp_path / name), *words]
        assert subprocess.run(line, capture_output=True, timeout=120).returncode == 0
    first, second = (tensors(newest(tmp_path / name)) for name in ("with", "without"))
    assert {name: value.tobytes() for name, value in first.items()} == {n: v.tobytes() for n, v in second.items()}
    returns = [[row.get("charts/episodic_return") for row in rows(tmp_path / name)] for name in ("with", "without")]
    assert returns[0] == returns[1]


LOCK_PAIR = [*LOCKSTEP, "--normalize.reward", "true", "--normalize.obs", "true"]


@pytest.mark.slow
@pytest.mark.parametrize(("updates", "closest"), [(1, 1e-6), (50, 1e-4)])
def test_two_ranks_in_lockstep_equal_one_rank_with_twice_the_groups(tmp_path, updates, closest):
    """The moments of Adam after one update are its gradient. The environments have the same seeds and noise."""
    stop = ["--stop.env-steps", str(1 + (updates - 1) * 2 * 2 * 4 * 16)]
    two = Job(tmp_path / "two", *LOCK_PAIR, *stop)
    assert two.codes == [0, 0]
    one = Job(tmp_path / "one", *LOCK_PAIR, *stop, "--sampling.groups-per-sampler", "4", number=1)
    assert one.codes == [0]
    assert newest(two.run_dir).name == newest(one.run_dir).name
    first, second = tensors(newest(two.run_dir)), tensors(newest(one.run_dir))
    assert int(second["optimizer.0.step"]) >= updates
    differences = {
        name: float(np.abs(first[name] - value).max() / np.abs(value).max())
        for name, value in second.items()
        if value.dtype.kind == "f" and np.abs(value).any()
    }
    of_squares = {name: found for name, found in differences.items() if name.endswith("exp_avg_sq")}
    others = {name: found for name, found in differences.items() if name not in of_squares}
    print(f"{updates} updates: {max(others.values()):.1e} of the largest value, squares {max(of_squares.values()):.1e}")
    assert max(others.values()) <= closest, others
    assert max(of_squares.values()) <= 2 * closest, of_squares


@pytest.mark.slow
def test_lockstep_of_two_ranks_killed_by_sigkill_and_resumed_is_bit_for_bit_the_unkilled_run(tmp_path):
    stop = ["--stop.env-steps", "30k", "--checkpoint.every-seconds", "0.5"]
    whole = Job(tmp_path / "whole", *LOCKSTEP, *stop)
    assert whole.codes == [0, 0]
    run_dir, killed = tmp_path / "killed", Job(tmp_path / "killed", *LOCKSTEP, *stop)
    for number in range(5):
        wait_for(lambda: steps(run_dir) > 4000 * (number + 1), 60.0, killed.processes[0])  # noqa: B023
        for process in killed.processes if number % 2 else killed.processes[:1]:
            process.kill()
        if number % 2 == 0:  # the other rank notices it by itself
            assert killed.processes[1].wait(30) == 7
        for process in killed.processes:
            process.communicate()
        killed = Job(run_dir, "--checkpoint.every-seconds", "0.5", resume=True)
    assert killed.codes == [0, 0]
    assert "not exact" not in log_of(run_dir)
    first, second = tensors(newest(tmp_path / "whole")), tensors(newest(run_dir))
    assert newest(tmp_path / "whole").name == newest(run_dir).name
    assert {name: value.tobytes() for name, value in first.items()} == {n: v.tobytes() for n, v in second.items()}
    names = ("env_steps", "charts/episodic_return", "charts/games", "lag/mean", "lag/max", "losses/entropy")
    whole_rows, killed_rows = (
        [[row.get(name) for name in names] for row in rows(at)] for at in (whole.run_dir, run_dir)
    )
    assert killed_rows == whole_rows


@pytest.mark.slow
def test_two_ranks_with_replay_killed_and_resumed_are_bit_for_bit_the_unkilled_run(tmp_path):
    """Each holds slots of its own, which the leader saves."""
    words = [*LOCKSTEP, "--replay.ratio", "1", "--replay.max-age", "2", "--checkpoint.every-seconds", "0.5"]
    whole = Job(tmp_path / "whole", *words, "--stop.env-steps", "8k")
    assert whole.codes == [0, 0]
    arrays = np.load(newest(whole.run_dir) / "lockstep.npz")
    assert arrays["held"].nbytes == arrays["held.1"].nbytes > 0
    assert arrays["held"].tobytes() != arrays["held.1"].tobytes()
    killed = Job(tmp_path / "killed", *words, "--stop.env-steps", "8k").wait_for_steps(3000)
    for process in killed.processes:
        process.kill()
        process.communicate()
    again = Job(killed.run_dir, resume=True)
    assert again.codes == [0, 0]
    first, second = tensors(newest(whole.run_dir)), tensors(newest(killed.run_dir))
    assert newest(whole.run_dir).name == newest(killed.run_dir).name
    assert {name: value.tobytes() for name, value in first.items()} == {n: v.tobytes() for n, v in second.items()}


# -- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_learner_ends_all_ranks_with_exit_7_and_one_last_line_each(job, rank):
    one = job().wait_for_steps(2000)
    one.worker(rank, "learner").kill()
    ends = one.ends(20.0)
    assert [code for code, _ in ends] == [7, 7]
    assert "the learner exited (killed by SIGKILL)" in ends[rank][1]
    assert "another learner of the job was lost" in ends[1 - rank][1]
    assert ends[0][1].startswith("sfactory: worker lost (exit 7): ")
    assert ends[1][1].startswith("sfactory: rank 1: worker lost (exit 7): ")
    assert all("resume: sfactory resume" in line for _, line in ends)
    wait_for(lambda: all_exited(one.every), 10.0)  # what cleans up after a rank exits a moment later


@pytest.mark.slow
@pytest.mark.faults
def test_killed_samplers_and_inference_of_a_rank_are_restarted_and_all_ranks_go_on(job):
    one = job("--stop.env-steps", "20k").wait_for_steps(2000)
    one.worker(1, "sampler").kill()
    one.worker(1, "inference").kill()
    assert one.codes == [0, 0]
    assert "sampler-0 exited (killed by SIGKILL)" in log_of(one.run_dir, 1)
    assert "inference exited (killed by SIGKILL)" in log_of(one.run_dir, 1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_the_other_one_with_exit_7(job, rank):
    one = job().wait_for_steps(2000)
    for process in one.all_of(rank):
        process.kill()
    ends = one.ends(20.0)
    assert ends[1 - rank][0] == 7
    assert "another learner of the job was lost" in ends[1 - rank][1]


@pytest.mark.faults
@pytest.mark.parametrize(
    "ranks", [[1], pytest.param([0], marks=pytest.mark.slow), pytest.param([0, 1], marks=pytest.mark.slow)]
)
def test_sigterm_to_a_rank_or_to_all_stops_all_ranks_after_the_same_update_with_a_checkpoint(job, ranks):
    one = job().wait_for_steps(2000)
    for rank in ranks:
        one.processes[rank].send_signal(signal.SIGTERM)
    assert one.codes == [143, 143]
    last = [json.loads((one.run_dir / name / "status.json").read_text()) for name in ("", "rank-1")]
    assert last[0]["env_steps"] == last[1]["env_steps"] == int(newest(one.run_dir).name)
    assert "not waited for" not in log_of(one.run_dir) + log_of(one.run_dir, 1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("ranks", [[1], [0, 1]])
def test_sigusr1_to_a_rank_saves_and_with_requeue_stops_all_ranks_for_the_scheduler(job, ranks):
    one = job("--checkpoint.every-seconds", "1000").wait_for_steps(2000)
    saved = newest(one.run_dir)
    for rank in ranks:
        one.processes[rank].send_signal(signal.SIGUSR1)
    wait_for(lambda: newest(one.run_dir) != saved, 20.0, one.processes[0])
    one.processes[0].send_signal(signal.SIGTERM)
    assert one.codes == [143, 143]
    again = job("--run.requeue", "true", "--checkpoint.every-seconds", "1000")
    again.wait_for_steps(int(newest(one.run_dir).name) + 2000)
    again.processes[ranks[0]].send_signal(signal.SIGUSR1)
    ends = again.ends()
    assert [code for code, _ in ends] == [75, 75]
    assert "stopped to be started again by the scheduler" in ends[0][1]
    assert log_of(one.run_dir).count("requeue; the exit code is 75") == 1
    assert "SLURM" not in log_of(one.run_dir, 1)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("whole", [False, True])
def test_rank_that_hangs_ends_the_others_within_the_stall_timeout(job, whole):
    one = job("--run.stall-timeout", STALL_S).wait_for_steps(2000)
    hanging = one.all_of(1) if whole else [one.worker(1, "learner")]
    for process in hanging:
        process.suspend()
    begin = time.monotonic()
    assert one.processes[0].wait(STALL_S + 15.0) == 8
    assert time.monotonic() - begin > 0.5 * STALL_S
    for process in hanging:
        if process.is_running():
            process.resume()
    ends = one.ends(40.0)
    assert "rank 1 has shown no sign of life" in ends[0][1] or "no update for" in ends[0][1]
    assert ends[1][0] in (7, 8)


SLOW_ON_RANK_1 = f"""
import os, time
{MY_ENV}
class Env(MyEnv):
    steps = 0
    def step(self, action):
        self.steps += 1
        if self.steps == 5 and os.environ["RANK"] == "1" and not os.path.exists("slept"):
            open("slept", "w").close()
            time.sleep(14.0)
        return super().step(action)
"""


@pytest.mark.slow
@pytest.mark.faults
def test_rank_that_is_slow_but_lives_is_waited_for_longer_than_the_stall_timeout(job, tmp_path):
    (tmp_path / "slow_env.py").write_text(SLOW_ON_RANK_1)
    options = {"target": "slow_env:Env", "cwd": tmp_path}
    one = job("--run.stall-timeout", "3", "--stop.env-steps", "4k", "--sampling.envs-per-group", "1", **options)
    assert one.codes == [0, 0]
    assert (tmp_path / "slept").exists()
    waited = f"learner: the first update waits for rank 1, which starts or fills its first batch; see {one.run_dir}"
    assert log_of(one.run_dir).count(waited) == 1
    assert "first update waits" not in log_of(one.run_dir, 1)


@pytest.mark.faults
def test_full_disk_at_rank_0_keeps_the_previous_checkpoint_and_lets_all_ranks_train_to_the_end(job, tmp_path):
    """Rank 0 sees a small file system under the checkpoints, which is full once the first one is there."""
    disk, saved = tmp_path / "disk", tmp_path / "run" / "checkpoints"
    disk.mkdir()
    fill = (
        f"until ls {saved}/0*/manifest.json; do sleep 0.1; done; mount -t tmpfs -o size=2m tmpfs {disk}; "
        f"cp -r {saved}/. {disk}; head -c 9M /dev/zero > {disk}/ballast; mount --bind {disk} {saved}"
    )
    one = job("--stop.env-steps", "30k", shell=f"( ({fill}) > /dev/null 2>&1 & )")
    ends = one.ends()
    assert [code for code, _ in ends] == [10, 0]
    assert "the last checkpoint could not be written, see log.txt; last checkpoint " in ends[0][1]
    assert "No space left on device; the previous checkpoint is kept" in log_of(one.run_dir)
    assert steps(one.run_dir) >= 30_000
    assert int(newest(one.run_dir).name) < 30_000


@pytest.mark.slow
@pytest.mark.faults
def test_resume_with_another_number_of_ranks_goes_on_from_the_same_steps(job):
    first = job("--stop.env-steps", "4k")
    assert first.codes == [0, 0]
    second = job("--stop.env-steps", "8k", resume=True, number=1)
    assert second.codes == [0]
    third = job("--stop.env-steps", "16k", resume=True, number=3)
    assert third.codes == [0, 0, 0]
    found = [row["env_steps"] for row in rows(first.run_dir)]
    assert found == sorted(set(found))
    assert json.loads((newest(first.run_dir) / "state.json").read_text())["world_size"] == 3


@pytest.mark.slow
@pytest.mark.faults
def test_ranks_with_different_settings_are_refused_with_the_setting(job):
    ends = job(of_ranks=[["--optim.lr", lr] for lr in ("1e-3", "2e-3")]).ends()
    assert [code for code, _ in ends] == [2, 2]
    assert all("rank 1 has another value of optim.lr than rank 0: 0.002, not 0.001" in line for _, line in ends)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_random_kills_of_any_process_of_two_ranks_never_hang_them(tmp_path):
    """50 kills at random moments. Either both ranks go on, or both end, and the run goes on from its checkpoint."""
    dice, run_dir, kills = random.Random(7), tmp_path / "run", 0
    one = Job(run_dir, "--checkpoint.every-seconds", "0.5", "--stop.env-steps", "1G")
    one.wait_for_steps(1000)
    while kills < SOAK_KILLS:
        time.sleep(3.0 * dice.random())
        rank = dice.randrange(2)
        dice.choice(one.all_of(rank)).kill()
        kills += 1
        time.sleep(3.0)  # rows of before the kill are written, and its effect is seen
        before = steps(run_dir)
        deadline = time.monotonic() + 40.0
        while time.monotonic() < deadline and steps(run_dir) <= before + 500:
            if all(process.poll() is not None for process in one.processes):
                break
            time.sleep(0.1)
        else:
            assert time.monotonic() < deadline, f"kill {kills} of rank {rank}: no progress and no end"
        if any(process.poll() is not None for process in one.processes):
            codes = one.codes
            assert set(codes) <= {7, 8, -signal.SIGKILL}, codes
            wait_for(partial(all_exited, one.every), 10.0)  # what cleans up after a rank exits a moment later
            one = Job(run_dir, resume=True)
            one.wait_for_steps(steps(run_dir) + 500)
    one.processes[1].send_signal(signal.SIGTERM)
    assert one.codes == [143, 143]
