"""The supervisor with fake workers: recording at the end of a run, telemetry, deadlines, faults of the evaluator."""

import os
import threading
import time
from types import SimpleNamespace

import pytest

from sfactory.config import Config, Env, Eval, Sampling
from sfactory.envs import make_spec
from sfactory.errors import Exit
from sfactory.monitor.board import Board
from sfactory.run.callbacks import Callbacks
from sfactory.run.outcome import Outcome
from sfactory.shm import atomics
from sfactory.shm.slots import FREE, READY, SAMPLING, Request
from sfactory.supervisor import processes as processes_module
from sfactory.supervisor import supervisor as module
from sfactory.supervisor.deadlines import START_S
from sfactory.supervisor.exit_rules import EVALUATOR_EXITS, EVALUATOR_PAUSE_S, FIRST_PAUSE_S
from sfactory.supervisor.output_file import OutputFile
from sfactory.supervisor.processes import Processes
from sfactory.supervisor.shutdown import CLOSE_ALL_S, CLOSE_S, EXIT_S, SAVE_S, SLOW_DISK, Leaving
from sfactory.supervisor.signals import SECOND_SIGNAL
from sfactory.supervisor.supervisor import Supervisor
from sfactory.supervisor.telemetry import Telemetry
from sfactory.workers.names import evaluator_name, learner_name, sampler_name
from sfactory.workers.shared import (
    AT_ONCE,
    WHOLE_GROUP,
    LearnerOutcome,
    Phase,
    RunSpec,
    SharedState,
    StopOrder,
    heartbeat_word,
)


class FakeRecorder:
    """Keeps the messages it receives."""

    def __init__(self):
        self.board, self.messages, self.writers = Board(), [], SimpleNamespace(log=print)
        self.callbacks = Callbacks()

    def handle(self, message):
        self.messages.append(message)

    training_return = float("nan")

    problem = ""

    def keep_folder(self):
        return self.problem

    def record_row_counts(self, counts, rows_by_task):
        pass


@pytest.fixture
def supervisor(tmp_path):
    config = Config(env=Env("gymnasium/CartPole-v1"), eval=Eval(every=100), sampling=Sampling(1, 1, 2, 4))
    run_spec, recorder = RunSpec(config, make_spec(config.env.name), str(tmp_path), 0), FakeRecorder()
    orphan_killer = SimpleNamespace(
        watch=lambda pid: None, mark=lambda *_: "", forget=lambda *_: None, collect=lambda pids: None
    )
    processes = Processes(run_spec, SharedState.create(run_spec), recorder, orphan_killer)
    return Supervisor(processes, recorder, SimpleNamespace(stop_count=0))


ROWS = [("learner", learner_name(), {"env_steps": steps}) for steps in (100, 200, 300)]
EVALUATION = ("eval", evaluator_name(), {"eval/env_steps": 300})


def test_supervisor_holds_the_last_row_until_its_evaluation_arrives(supervisor):
    """The learner may reach its target, save and send its last row within one tick."""
    supervisor.processes.telemetry.messages.append(ROWS[0])
    supervisor._record()
    assert supervisor.recorder.messages == ROWS[:1], "no row is held while the learner trains"
    supervisor.shared.learner[0].outcome = LearnerOutcome.STOP_RULE
    supervisor.processes.telemetry.messages.extend(ROWS[1:])
    supervisor._record()
    assert supervisor.recorder.messages == ROWS[:2], "the newest row is held"
    supervisor.processes.telemetry.messages.append(EVALUATION)
    supervisor.shutdown.run(Outcome("finished", 0, ""))
    assert supervisor.recorder.messages == [*ROWS[:2], EVALUATION, ROWS[2]]


def test_shutdown_records_the_last_row_without_an_evaluation(supervisor):
    supervisor.shared.learner[0].outcome = LearnerOutcome.STOP_RULE
    supervisor.processes.telemetry.messages.extend(ROWS)
    supervisor._record()
    supervisor.shutdown.run(Outcome("finished", 0, ""))
    assert supervisor.recorder.messages == ROWS


class SlowTelemetry(Telemetry):
    """Its threads start to read late, as on a busy machine."""

    def _read(self, queue, reaped):
        time.sleep(0.5)
        super()._read(queue, reaped)


def test_telemetry_wait_until_read_waits_for_slow_readers():
    telemetry, reaped = SlowTelemetry(), threading.Event()
    telemetry.listen(reaped).put(ROWS[0])
    reaped.set()
    start = time.monotonic()
    telemetry.wait_until_read(5.0)
    assert telemetry.drain() == ROWS[:1]
    assert 0.4 < time.monotonic() - start < 4.0, "no longer than needed"


def fake_processes(supervisor, monkeypatch):
    """Start workers that are this process; returns the names of those that were killed."""
    killed = []
    monkeypatch.setattr(processes_module, "spawn", lambda *_: SimpleNamespace(pid=os.getpid(), exitcode=None))
    monkeypatch.setattr(processes_module.WorkerProcess, "kill", lambda worker: killed.append(worker.name))
    monkeypatch.setattr(processes_module.WorkerProcess, "request_stack_dump", lambda worker: None)
    monkeypatch.setattr(module, "STACK_DUMP_S", 0.0)
    return killed


def beat(supervisor, count, phase, env=-1):
    """A heartbeat of the only sampler."""
    row = supervisor.run_spec.workers.index(sampler_name(0))
    supervisor.shared.arena["position"][0] = 0, env
    atomics.store(supervisor.shared.heartbeat, row, heartbeat_word(count, phase))


def check_at(supervisor, seconds):
    """Advance the clock to `seconds` and check the deadlines."""
    supervisor.processes.clock = seconds
    return supervisor._check_deadlines()


@pytest.fixture
def started(supervisor, monkeypatch):
    """A supervisor whose workers have started (generation 1), with a list of those that it killed."""
    supervisor.killed = fake_processes(supervisor, monkeypatch)
    beat(supervisor, 7, Phase.ENVIRONMENT)  # of the previous generation, which exited inside an environment
    for name in supervisor.run_spec.workers:
        supervisor.processes.generations[name] = 1
        supervisor._start(name)
        if name != sampler_name(0):
            supervisor.processes.active[name].beats = True
    yield supervisor
    for worker in supervisor.processes.active.values():
        worker.reaped.set()
        os.close(worker.pidfd)


STEP, BUILD, STALL = 120.0, 600.0, 300.0  # the defaults


def test_restarted_sampler_has_no_deadline_before_its_first_heartbeat(started):
    """The previous generation exited inside an environment, and loading may take longer than `env.step_timeout`."""
    check_at(started, 0)
    check_at(started, 10 * STEP)
    assert not started.killed
    beat(started, 1, Phase.ENVIRONMENT, env=0)
    check_at(started, 10 * STEP)
    check_at(started, 12 * STEP)
    assert started.killed == ["sampler-0"], "its own heartbeat counts"


@pytest.mark.parametrize(("phase", "limit"), [(Phase.ENVIRONMENT, STEP), (Phase.BUILD, BUILD)])
def test_every_environment_of_a_group_has_its_own_time(started, phase, limit):
    """A group may take longer than one environment may, whether it is stepped or built."""
    for turn in range(5):
        beat(started, 1, phase, turn % 2)  # only the position changes
        check_at(started, turn * 0.9 * limit)
    assert not started.killed
    check_at(started, 6 * limit)
    assert started.killed == ["sampler-0"]
    (message,) = (text for _, _, text in started.recorder.messages)
    what = "environment step" if phase == Phase.ENVIRONMENT else "building an environment"
    setting = "env.step-timeout" if phase == Phase.ENVIRONMENT else "env.build-timeout"
    assert f"sampler-0: {what} exceeded {limit:g} s ({setting}, " in message
    assert "environment 0" in message


@pytest.mark.parametrize(("env", "times"), [(WHOLE_GROUP, 2), (AT_ONCE, 1)])
def test_group_that_does_not_report_its_environments_has_the_time_of_all_of_them(started, env, times):
    beat(started, 1, Phase.ENVIRONMENT, env)
    check_at(started, 0)
    check_at(started, times * STEP)
    assert not started.killed
    check_at(started, times * STEP + 1)
    assert started.killed == ["sampler-0"]


def request(supervisor, number):
    supervisor.shared.slot_table.request(0, Request(number, 0, 0))


def test_run_is_no_stall_while_rows_arrive_and_one_as_soon_as_neither_rows_nor_updates_do(started):
    beat(started, 1, Phase.WORK)
    for turn in range(6):  # one row in almost `stall_timeout`, no update at all
        request(started, turn + 1)
        assert check_at(started, turn * 0.9 * STALL) is None
    last = 5 * 0.9 * STALL
    started.shared.learner[0].optimizer_steps = 1
    assert check_at(started, last + STALL) is None, "within a long update"
    started.shared.learner[0].updates = 1
    assert check_at(started, last + 2 * STALL) is None, "an update arrived"
    beat(started, 2, Phase.IDLE)  # a sampler that waits has heartbeats too
    outcome = check_at(started, last + 3 * STALL + 1)
    assert outcome.code == 8
    assert outcome.sentence.startswith("no update for 300 s, and no new rows")


def test_run_is_no_stall_while_a_worker_loads_packages(started):
    assert check_at(started, 0.99 * START_S) is None
    assert check_at(started, 1.9 * STALL) is None, "five minutes to start, and then the time of a stall"
    assert check_at(started, 2.1 * STALL).code == 8


@pytest.mark.parametrize("phase", [Phase.BUILD, Phase.ENVIRONMENT])
def test_run_is_no_stall_while_a_sampler_is_within_the_time_of_an_environment(started, phase):
    object.__setattr__(started.config.env, "step_timeout", 2 * STALL)
    beat(started, 1, phase, env=1)
    assert check_at(started, 0) is None
    assert check_at(started, 1.9 * STALL) is None
    beat(started, 2, Phase.WORK, env=1)
    assert check_at(started, 2.8 * STALL) is None
    assert check_at(started, 3.0 * STALL).code == 8


def test_supervisor_pauses_before_it_restarts_an_evaluator_that_exits_repeatedly_without_a_result(supervisor):
    started, name = [], evaluator_name()
    supervisor._start = started.append

    def exits():
        supervisor._record()
        assert supervisor._on_exit(exited(name), -9) is None

    for number in range(3 * EVALUATOR_EXITS):  # one result between any two exits
        supervisor.recorder.board.evaluated = number
        exits()
    assert len(started) == 3 * EVALUATOR_EXITS
    for _ in range(EVALUATOR_EXITS - 1):
        exits()
    assert len(started) == 4 * EVALUATOR_EXITS - 2, "it is not restarted at once after the last exit"
    messages = [text for _, _, text in supervisor.recorder.messages]
    assert messages[-1].endswith("; 4 times in a row without a result, training continues; restarted in 60 s")
    assert all(text.endswith("; restarted") for text in messages[:-1])
    supervisor.processes.clock += EVALUATOR_PAUSE_S
    supervisor._start_due()
    assert len(started) == 4 * EVALUATOR_EXITS - 1, "it is tried again"


def exited(name, generation=1, **fields):
    """A worker process that has exited."""
    output = SimpleNamespace(last_line=lambda: "ValueError: no", path=f"debug/{name}.txt")
    state = {"exceeded": "", "hung_s": 0.0, "slots_before": 0, "heartbeat": (-1, -1), "beats": False, "began_at": 0.0}
    return SimpleNamespace(
        **{"name": name, "generation": generation, "output": output, "ready": False, **state, **fields}
    )


def test_supervisor_forgets_faults_of_a_sampler_only_for_slots_that_it_fills_itself(supervisor):
    """Updates from the data of others would hide a sampler that always fails."""
    supervisor._start, supervisor.shared.learner[0].updates = lambda name: None, 5
    name = sampler_name(0)
    for faults in (1, 2, 3):
        supervisor.shared.learner[0].updates += 1
        supervisor._record()
        supervisor._on_exit(exited(name), 1)
        assert supervisor.faults[name] == faults
    for _ in range(2 * module.SLOTS_PER_FAULT):
        for states in ((FREE, SAMPLING), (SAMPLING, READY), (READY, FREE)):
            supervisor.shared.slot_table.transition(0, 0, *states)
    supervisor._on_exit(exited(name), 1)
    assert supervisor.faults[name] == 3 - 2 + 1
    supervisor._on_exit(exited(name, slots_before=2 * module.SLOTS_PER_FAULT), 1)
    assert supervisor.faults[name] == 3, "slots of an earlier generation count once"


def test_supervisor_puts_the_spare_in_charge_when_inference_is_killed_again(started):
    """And starts the next spare beside it. What was written before belongs to others."""
    name, output = "inference", started.run_spec.debug_dir / "inference.txt"
    row = started.run_spec.workers.index(name)
    assert started.shared.in_charge[row] == 1
    for generation in (2, 3, 4):
        first = started.processes.active.pop(name)
        os.close(first.pidfd)
        spare = started.processes.spares.processes.get(name)
        started._on_exit(first, -9)
        worker = started.processes.active[name]
        assert started.shared.in_charge[row] == worker.generation == generation
        assert not worker.beats
        if generation == 4:
            assert worker is spare
            assert worker.output.last_line() == ""
        output.parent.mkdir(exist_ok=True)
        output.write_text("RuntimeError: of an earlier generation\n" * generation)
    assert started.processes.spares.processes[name].generation == 5
    os.close(started.processes.spares.processes[name].pidfd)
    assert all(text.endswith("exited (killed by SIGKILL); restarted") for _, _, text in started.recorder.messages)


def test_supervisor_says_which_process_is_left_after_sigkill(supervisor, capsys):
    killed = SimpleNamespace(name="sampler-0", pid=41, generation=3, output=SimpleNamespace(trim=lambda: None))
    killed.join = lambda: -9
    supervisor.processes.orphan_killer = SimpleNamespace(
        mark=lambda name, generation: f"{name}/{generation}", forget=lambda pid, mark: [42] if mark else []
    )
    supervisor.processes.reap(killed)
    line = "sampler-0: process 42 does not end after SIGKILL, so something inside the system does not answer; "
    assert capsys.readouterr().out == f"{line}left as it is\n"
    killed.join = lambda: 0
    supervisor.processes.reap(killed)
    assert capsys.readouterr().out == ""


def hang(supervisor, worked_s):
    """A generation of the only sampler that works for so many seconds, fills slots and then hangs."""
    name = sampler_name(0)
    begun = supervisor.processes.clock
    for _ in range(2 * module.SLOTS_PER_FAULT):
        for states in ((FREE, SAMPLING), (SAMPLING, READY), (READY, FREE)):
            supervisor.shared.slot_table.transition(0, 0, *states)
    supervisor.processes.clock += worked_s + STEP
    slots = supervisor._slots_filled(name) - 2 * module.SLOTS_PER_FAULT
    beats = {"beats": True, "ready": True, "began_at": begun, "slots_before": slots}
    return supervisor._on_exit(exited(name, exceeded="it hangs", hung_s=STEP, **beats), -9)


@pytest.mark.parametrize(("worked_s", "ends"), [(0.0, True), (2.9 * STEP, True), (3.1 * STEP, False)])
def test_supervisor_ends_a_run_whose_environment_hangs_for_more_than_a_quarter_of_the_time(supervisor, worked_s, ends):
    """However much data arrives between: a reset that hangs after three episodes was restarted without end."""
    supervisor._start, supervisor.shared.learner[0].updates = lambda name: None, 5
    outcomes = [hang(supervisor, worked_s) for _ in range(supervisor.config.run.spare_restarts + 1)]
    assert outcomes[:-1] == [None] * (len(outcomes) - 1)
    assert (outcomes[-1] is not None) == ends
    if ends:
        assert outcomes[-1].code == 6
        assert outcomes[-1].sentence.startswith("sampler-0 exited 11 times with little or no progress in between")


def test_supervisor_does_not_report_the_position_of_an_earlier_generation(supervisor):
    """A sampler that is killed in an environment leaves its position; the next one may not even find its packages."""
    supervisor._start, supervisor.shared.learner[0].updates = lambda name: None, 5
    beat(supervisor, 7, Phase.ENVIRONMENT, env=1)
    word = supervisor.deadlines.heartbeat(sampler_name(0))
    supervisor._on_exit(exited(sampler_name(0), heartbeat=word), 1)
    assert "in environment" not in supervisor.recorder.messages[-1][2]
    beat(supervisor, 1, Phase.ENVIRONMENT, env=1)
    supervisor._on_exit(exited(sampler_name(0), heartbeat=word), 1)
    assert ", in environment 1, seed" in supervisor.recorder.messages[-1][2]


def test_supervisor_counts_kills_of_a_worker_until_it_is_ready(supervisor):
    supervisor._start, name = lambda name: None, sampler_name(0)
    word = supervisor.deadlines.heartbeat(name)
    for kills in (1, 2):
        supervisor._on_exit(exited(name, heartbeat=word), -9)
        assert supervisor.kills[name] == kills
    beat(supervisor, 1, Phase.BUILD)
    supervisor._on_exit(exited(name, heartbeat=word), -9)
    assert supervisor.kills[name] == 3, "it was building its environments"
    beat(supervisor, 2, Phase.WORK)
    supervisor._on_exit(exited(name, heartbeat=word), -9)
    assert supervisor.kills[name] == 1


def test_supervisor_pauses_before_it_restarts_a_sampler_that_fails_again(supervisor):
    started, name = [], sampler_name(0)
    supervisor._start, supervisor.shared.learner[0].updates = started.append, 5
    supervisor._on_exit(exited(name, 0), 1)
    assert started == [name], "at once after the first fault"
    supervisor._on_exit(exited(name, 1), 1)
    supervisor._start_due()
    assert started == [name]
    supervisor.processes.clock += FIRST_PAUSE_S
    supervisor._start_due()
    supervisor._start_due()
    assert started == [name, name]
    assert "restarted in 0.5 s" in supervisor.recorder.messages[-1][2]


def test_closing_sampler_has_time_for_each_environment_and_for_all_of_them(started):
    leaving, (sampler,) = (
        Leaving(started.processes, started.deadlines),
        [w for name, w in started.processes.active.items() if name == sampler_name(0)],
    )
    beat(started, 1, Phase.WORK)
    assert not leaving.goes_on(sampler, 3.0), "it has not begun to close"
    for turn in range(4):
        beat(started, 2, Phase.CLOSE, env=turn % 2)
        assert leaving.goes_on(sampler, 0.99 * turn * CLOSE_S)
    assert leaving.goes_on(sampler, 3.9 * CLOSE_S)
    assert not leaving.goes_on(sampler, 3.99 * CLOSE_S), "one environment takes too long"
    beat(started, 2, Phase.CLOSE, env=0)
    assert not leaving.goes_on(sampler, CLOSE_ALL_S + 1)


def test_leaving_learner_has_time_as_long_as_it_takes_optimizer_steps(started):
    leaving, learner = Leaving(started.processes, started.deadlines), started.processes.active[learner_name()]
    for turn in range(4):
        started.shared.learner[0].optimizer_steps += 1
        assert leaving.goes_on(learner, 0.99 * turn * SAVE_S)
    assert leaving.goes_on(learner, 3.9 * SAVE_S)
    assert not leaving.goes_on(learner, 3.99 * SAVE_S)
    assert learner.exceeded == "no optimizer step and no checkpoint for 30 s"
    started.shared.learner[0].checkpoint, learner.exceeded = 300, ""
    assert leaving.goes_on(learner, 4.1 * SAVE_S), "one of two saves has ended"


def test_leaving_learner_has_the_time_that_a_slow_disk_takes_for_a_large_checkpoint(started):
    learner, folder = (
        started.processes.active[learner_name()],
        started.run_spec.policy_dir() / "checkpoints/000000000000",
    )
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(20 * SLOW_DISK))
    leaving = Leaving(started.processes, started.deadlines)
    assert leaving.goes_on(learner, 0.0)
    assert leaving.goes_on(learner, SAVE_S + 19.0)
    assert not leaving.goes_on(learner, SAVE_S + 21.0)
    assert learner.exceeded == "no optimizer step and no checkpoint for 50 s"


def test_leaving_learner_without_progress_before_the_order_has_little_time(started):
    learner = started.processes.active[learner_name()]
    started.processes.clock += started.config.run.stall_timeout
    started.deadlines.arrived_at = started.processes.clock - 1.0
    assert Leaving(started.processes, started.deadlines).learner_s == SAVE_S, "its update is long"
    started.deadlines.arrived_at = learner.heartbeat_at = 0.0
    leaving = Leaving(started.processes, started.deadlines)
    assert leaving.goes_on(learner, 0.0)
    assert not leaving.goes_on(learner, 1.01 * EXIT_S)


def test_shutdown_says_that_a_learner_was_killed_for_lack_of_progress(supervisor):
    ended = Outcome.of(Exit.INTERRUPTED, "stopped by signal")
    learner = SimpleNamespace(name=learner_name(), exit_code=-9, pidfd=-1, heartbeat_at=0.0, exceeded="no progress")
    supervisor.processes.active[learner.name] = learner
    supervisor.processes.reap = lambda worker: supervisor.processes.active.pop(worker.name)
    supervisor.shutdown.run(ended)
    assert (ended.code, ended.sentence) == (
        Exit.INTERRUPTED, "stopped by signal; the learner was killed before it exited: no progress"
    )  # fmt: skip


@pytest.mark.parametrize("reported", [LearnerOutcome.STOP_RULE, LearnerOutcome.REQUEUED])
@pytest.mark.parametrize("code", [Exit.REQUEUE, Exit.TERMINATED])
def test_shutdown_does_not_finish_a_run_whose_learner_fails_in_its_last_save(supervisor, code, reported):
    ended = Outcome.of(code, "stopped by signal")
    learner = SimpleNamespace(name=learner_name(), exit_code=-9, pidfd=-1, heartbeat_at=0.0, exceeded="no checkpoint")
    supervisor.processes.active[learner.name] = learner
    supervisor.processes.reap = lambda worker: supervisor.processes.active.pop(worker.name)
    supervisor.shared.learner[0].outcome = reported
    supervisor.shutdown.run(ended)
    assert (ended.code, ended.sentence) == (
        code, "stopped by signal; the learner was killed before it exited: no checkpoint"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reported", "code"), [(LearnerOutcome.STOP_RULE, Exit.FINISHED), (LearnerOutcome.STORAGE, Exit.STORAGE)]
)
def test_shutdown_keeps_what_the_learner_reported_if_a_second_signal_comes_after_it_has_left(
    supervisor, reported, code
):
    ended, signals = Outcome.of(Exit.REQUEUE, "stopped by signal"), supervisor.signals
    name = sampler_name(0)  # it still closes its environments
    supervisor.processes.active[name] = SimpleNamespace(name=name, exit_code=None, pidfd=-1, heartbeat_at=0.0)
    supervisor.shared.learner[0].outcome, signals.stop_count = reported, 1
    supervisor.processes.wait = lambda: setattr(signals, "stop_count", 2)
    supervisor.shutdown.run(ended)
    assert ended.code == code
    assert ended.sentence.endswith("; stopped by a second signal")


@pytest.mark.parametrize(("outcome", "code"), [(Exit.FINISHED, Exit.STORAGE), (Exit.ENVIRONMENT, Exit.ENVIRONMENT)])
def test_shutdown_saves_nothing_in_a_folder_that_another_run_has_taken(supervisor, outcome, code):
    ended = Outcome.of(outcome, "it ended")
    supervisor.recorder.problem = "runs/a was moved, and another run is in its place"
    supervisor.shutdown.run(ended)
    assert supervisor.shared.supervisor.stop == StopOrder.NOW
    assert ended.code == code
    assert ended.sentence.endswith("another run is in its place")


def test_leaving_learner_that_is_not_to_save_has_little_time(started):
    leaving, learner = (
        Leaving(started.processes, started.deadlines, saves=False),
        started.processes.active[learner_name()],
    )
    assert leaving.goes_on(learner, 0.5 * EXIT_S)
    started.shared.learner[0].optimizer_steps += 1
    assert not leaving.goes_on(learner, 1.01 * EXIT_S)


def test_supervisor_stops_its_workers_in_order_if_a_spare_cannot_be_killed(supervisor, monkeypatch):
    def refuse():
        raise RuntimeError("inference (pid 1) cannot be killed")

    stopped = []
    monkeypatch.setattr(supervisor, "_start", lambda name: None)
    monkeypatch.setattr(supervisor, "_loop", lambda: Outcome.of(Exit.INTERRUPTED, "stopped by signal"))
    monkeypatch.setattr(supervisor.processes.spares, "close", refuse)
    monkeypatch.setattr(supervisor.shutdown, "run", lambda outcome: stopped.append(outcome.code))
    with pytest.raises(RuntimeError, match="cannot be killed"):
        supervisor.run()
    assert stopped == [Exit.INTERRUPTED]


@pytest.mark.parametrize(("signals", "reason"), [(0, "the evaluator failed or took longer"), (1, "a signal arrived")])
def test_shutdown_says_why_the_last_policy_was_not_evaluated(supervisor, capsys, signals, reason):
    supervisor.shared.learner[0].checkpoint, supervisor.signals.stop_count = 300, signals
    supervisor.shutdown.run(Outcome.of(Exit.FINISHED, "the stop rule was reached"))
    assert f"the last policy was not evaluated ({reason}" in capsys.readouterr().out


def test_supervisor_prefers_what_the_learner_reported_to_a_signal(supervisor):
    supervisor.signals = SimpleNamespace(
        forward=lambda shared: None, outcome=lambda: Outcome.of(Exit.REQUEUE, "stopped"), stop_count=1
    )
    assert supervisor._loop().code == Exit.REQUEUE
    supervisor.shared.learner[0].outcome = LearnerOutcome.STOP_RULE
    assert supervisor._loop().code == Exit.FINISHED


def test_supervisor_reaps_all_workers_if_one_of_them_cannot_be_killed(supervisor):
    reaped = []

    def reap(worker):
        reaped.append(worker.name)
        if worker.name == "sampler-0":
            raise RuntimeError("sampler-0 (pid 1) cannot be killed")

    names = "learner", "sampler-0", "inference"
    workers = {name: SimpleNamespace(name=name, kill=lambda: None) for name in names}
    supervisor.processes.active, supervisor.processes.reap = workers, reap
    with pytest.raises(RuntimeError, match="cannot be killed"):
        supervisor.processes.close()
    assert sorted(reaped) == sorted(names)


@pytest.mark.parametrize(
    ("outcome", "word", "code"), [("finished", "worker lost", 7), ("interrupted", "interrupted", 130)]
)
def test_shutdown_reports_a_learner_that_fails_before_it_exits(supervisor, monkeypatch, outcome, word, code):
    ended = Outcome(outcome, {"finished": 0, "interrupted": 130}[outcome], "the stop rule was reached")
    learner = SimpleNamespace(name=learner_name(), exit_code=1, pidfd=-1, heartbeat_at=0.0, exceeded="")
    learner.output = OutputFile(supervisor.run_spec.debug_dir / "learner.txt")
    supervisor.processes.active[learner.name] = learner
    supervisor.processes.reap = lambda worker: supervisor.processes.active.pop(worker.name)
    supervisor.run_spec.debug_dir.mkdir()
    (supervisor.run_spec.debug_dir / "learner.txt").write_text("Traceback ...\nOSError: gone\n")
    supervisor.shutdown.run(ended)
    assert (ended.name, ended.code) == (word, code)
    assert ended.sentence == "the stop rule was reached; the learner failed before it exited: OSError: gone"
    assert supervisor.shared.supervisor.stop == StopOrder.FINISH


@pytest.mark.parametrize(("saved", "name", "code"), [(False, "interrupted", 130), (True, "finished", 0)])
def test_shutdown_of_a_finished_run_is_interrupted_by_a_second_signal_before_its_last_checkpoint(
    supervisor, saved, name, code
):
    ended, signals = Outcome("finished", 0, "the stop rule was reached"), supervisor.signals
    signals.outcome = lambda: Outcome.of(Exit.INTERRUPTED, "stopped by signal")
    worker = evaluator_name() if saved else learner_name()
    supervisor.processes.active[worker] = SimpleNamespace(name=worker, exit_code=None, pidfd=-1, heartbeat_at=0.0)
    supervisor.processes.wait = lambda: setattr(signals, "stop_count", 2)
    supervisor.shutdown.run(ended)
    assert (ended.name, ended.code) == (name, code)
    assert ended.sentence == "the stop rule was reached" + ("; stopped by a second signal" if saved else SECOND_SIGNAL)
