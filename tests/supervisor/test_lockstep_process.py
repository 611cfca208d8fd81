"""The parent of a lockstep run with a fake child: answers, exits, time limits, signals, closing."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from sfactory.config import Config, Env, Sampling
from sfactory.envs import EnvError, make_spec
from sfactory.errors import Exit
from sfactory.monitor.board import Board
from sfactory.run.callbacks import Callbacks, as_callbacks
from sfactory.run.outcome import Outcome
from sfactory.shm import atomics
from sfactory.shm.slots import RowCounts
from sfactory.supervisor import lockstep_process as module
from sfactory.supervisor.deadlines import START_S
from sfactory.supervisor.lockstep_clock import LockstepClock
from sfactory.supervisor.lockstep_link import End, Inside, Link, _portable
from sfactory.supervisor.lockstep_process import LockstepProcess
from sfactory.supervisor.shutdown import CLOSE_ALL_S, CLOSE_S
from sfactory.supervisor.signals import SECOND_SIGNAL, Signals
from sfactory.workers.names import sampler_name
from sfactory.workers.shared import WHOLE_GROUP, Phase, RunSpec, SharedState, heartbeat_word

STEP, BUILD, STALL = 120.0, 600.0, 300.0  # the defaults


@pytest.fixture
def shared(tmp_path):
    """Memory of a run with two samplers of one group of four environments each."""
    config = Config(env=Env("gymnasium/CartPole-v1"), sampling=Sampling(2, 1, 4, 8))
    shared = SharedState.create(RunSpec(config, make_spec(config.env.name), str(tmp_path), 0))
    yield shared
    shared.close()


def beat(shared, sampler, count, phase, env=0):
    """A heartbeat of one of the samplers in the child."""
    row = shared.run_spec.workers.index(sampler_name(sampler))
    shared.arena["position"][sampler] = sampler, env
    atomics.store(shared.heartbeat, row, heartbeat_word(count, phase))


# -- the clock -------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(shared):
    return LockstepClock(shared.run_spec, shared)


def test_lockstep_clock_limits_a_step_and_says_where(limits, shared):
    limits.begin()
    shared.arena["episode_seed"][1, 3], shared.arena["episode_step"][1, 3] = 77, 5
    beat(shared, 0, 9, Phase.WORK)
    beat(shared, 1, 9, Phase.ENVIRONMENT, 3)
    assert limits.exceeded(10.0) == "", "the first look at this heartbeat"
    assert limits.exceeded(10.0 + STEP) == ""
    where = ", in environment 7, seed 77, step 5 of the episode"
    assert limits.exceeded(10.1 + STEP) == f"environment step exceeded 120 s (env.step-timeout{where})"
    assert limits.where() == where
    beat(shared, 1, 10, Phase.ENVIRONMENT, 3)
    assert limits.exceeded(10.1 + STEP) == "", "a heartbeat starts the time again"


def test_lockstep_clock_finds_the_sampler_that_is_inside_whichever_beat_last(limits, shared):
    limits.begin()
    beat(shared, 1, 9, Phase.WORK)
    beat(shared, 0, 9, Phase.ENVIRONMENT, 2)
    assert limits.where().startswith(", in environment 2,")


def test_lockstep_clock_limits_building_to_the_sampler_that_builds(limits, shared):
    """A sampler that is built says so until its first step, while the next one builds."""
    beat(shared, 0, 4, Phase.BUILD, WHOLE_GROUP)
    assert limits.where() == ", building environments 0 to 3"
    limits.exceeded(0.0)
    beat(shared, 1, 1, Phase.BUILD, 0)
    limits.exceeded(4 * BUILD + 1.0)
    assert limits.exceeded(4 * BUILD + 2.0) == "", "the time of sampler-0 is over, but it is built"
    assert limits.exceeded(5 * BUILD + 2.0) == (
        "building an environment exceeded 600 s (env.build-timeout, building environment 4)"
    )


def test_lockstep_clock_sees_no_environment_between_building_and_the_first_step(limits, shared):
    for sampler in (0, 1):
        beat(shared, sampler, 4, Phase.BUILD, WHOLE_GROUP)
    limits.begin()
    assert limits.where() == ""
    assert limits.exceeded(0.0) == limits.exceeded(9 * BUILD) == ""
    assert not limits.stalled(0.0)
    assert limits.stalled(1.0 + STALL), "the first inference may hang"
    beat(shared, 0, 5, Phase.BUILD, 1)  # again, in place of one that failed
    assert limits.where() == ", building environment 1"


def test_lockstep_clock_limits_environments_outside_of_the_samplers(limits):
    limits.begin()
    limits.inside(Inside("in an evaluation", "environment step", 3.0, "env.step-timeout"), 50.0)
    assert limits.where() == ", in an evaluation"
    assert limits.exceeded(53.0) == ""
    assert limits.exceeded(53.1) == "environment step exceeded 3 s (env.step-timeout, in an evaluation)"
    assert not limits.stalled(51.0)
    assert not limits.stalled(52.0 + STALL)
    limits.inside(None, 60.0)
    assert limits.exceeded(99.0) == limits.where() == ""
    assert not limits.stalled(60.0 + STALL)
    assert limits.stalled(61.0 + 2 * STALL)


def test_lockstep_clock_does_not_count_loading_as_a_stall(limits, shared):
    assert not limits.stalled(0.0)
    assert not limits.stalled(START_S - 1.0)
    assert not limits.stalled(START_S + 1.0)
    assert limits.stalled(START_S + STALL + 2.0), "it never began"


def test_lockstep_clock_sees_updates_as_signs_of_progress(limits, shared):
    limits.begin()
    limits.stalled(0.0)
    shared.learner[0].optimizer_steps = 1
    assert not limits.stalled(STALL + 1.0)
    assert limits.stalled(2 * STALL + 2.0)


# -- the parent ------------------------------------------------------------------------------------------------------


class FakeRecorder:
    """Keeps what it receives; the third message ends the run."""

    def __init__(self):
        self.board, self.messages, self.lines = Board(), [], []
        self.writers = SimpleNamespace(log=self.lines.append)
        self.handle, self.record_row_counts = self.messages.append, lambda counts, by_task: self.lines.append(counts)
        self.callbacks = Callbacks()

    def outcome_from_messages(self):
        return Outcome.of(Exit.FINISHED, "the target") if len(self.messages) == 3 else None


class FakeWorker:
    """A child that does not run; `exit_code` is set by the test."""

    def __init__(self, folder):
        self.pidfd, self.exit_code, self.exceeded = -1, None, ""
        self.output = SimpleNamespace(path=folder / "lockstep.txt", last_line=lambda: "Error: last", trim=lambda: None)
        self.dumped = False

    def request_stack_dump(self):
        self.dumped = True


@pytest.fixture
def parent(shared, tmp_path, monkeypatch):
    """The parent, whose clock advances by a second at every tick, and a link to it as `link`."""
    monkeypatch.setattr(module, "STACK_DUMP_S", 0.0)
    monkeypatch.setattr(module, "TICK_S", 0.01)
    ours, theirs = multiprocessing.Pipe()
    parent = LockstepProcess(shared.run_spec, shared, FakeRecorder(), Signals(), ours, FakeWorker(tmp_path))
    parent.link, parent.theirs = Link(theirs), theirs
    yield parent
    ours.close()
    theirs.close()


def press(parent, number=signal.SIGINT):
    parent.signals._handle(number, None)


def child(parent, work):
    """Run what a child does in a thread, and its parent here; return the outcome and the result of `work`."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work(parent.link)))
    thread.start()
    try:
        return parent.run(), results
    finally:
        parent.theirs.close()
        thread.join(5.0)


COUNTS = RowCounts(*[0] * len(RowCounts._fields))
ENDED = Outcome.of(Exit.FINISHED, "the stop rule was reached")


def test_lockstep_process_records_what_its_child_sends_and_answers(parent):
    parent.signals.save_count = 2
    parent.recorder.board.episodes.add([(7.0, 3, 0)])
    published = []

    def work(link):
        found = [link.begin()]
        published.extend(parent.shared.episodes.read().tolist())
        state = link.board()
        link.set_board({**state, "eval": [640, {}]})
        link.log("a line")
        found.append(link.record([("log", "learner", "a")], updated=True))
        link.end(End(ENDED, COUNTS, {}, [("log", "learner", "b")]))
        parent.worker.exit_code = 0
        return found

    outcome, [[first, second]] = child(parent, work)
    assert outcome == ENDED
    assert first == (0, 2, None)
    assert 7.0 in published
    assert published == parent.recorder.board.episodes.numbers().tolist()
    assert (second.evaluated, second.outcome) == (640, None)
    recorder = parent.recorder
    assert [text for _, _, text in recorder.messages] == ["a", "b"]
    assert recorder.lines == ["a line", COUNTS]


def test_lockstep_process_passes_on_a_signal_after_an_update_only(parent):
    """A checkpoint is written between two updates."""
    press(parent)

    def work(link):
        orders = link.record([], updated=False), link.record([], updated=True)
        link.end(End(orders[1].outcome, COUNTS, {}, []))
        parent.worker.exit_code = 0
        return orders

    outcome, [[within, after]] = child(parent, work)
    assert within.outcome is None
    assert after.outcome == outcome == Outcome.of(Exit.INTERRUPTED, "stopped by signal")


def test_lockstep_process_passes_on_the_stop_of_a_callback_after_an_update_only(parent, tmp_path):
    parent.recorder.callbacks = callbacks = as_callbacks(lambda run, row: run.stop("enough"))
    callbacks.begin(tmp_path, parent.run_spec.config, parent.signals.request_save, print, "")
    callbacks.row({"env_steps": 1})

    def work(link):
        orders = link.record([], updated=False), link.record([], updated=True)
        link.end(End(orders[1].outcome, COUNTS, {}, []))
        parent.worker.exit_code = 0
        return orders

    outcome, [[within, after]] = child(parent, work)
    assert within.outcome is None
    assert after.outcome == outcome == Outcome.of(Exit.FINISHED, "stopped by a callback: enough")


def test_lockstep_process_passes_on_the_outcome_of_messages_at_once(parent):
    def work(link):
        orders = link.record([("log", "learner", "a")] * 3, updated=False)
        link.refuse("no")
        parent.worker.exit_code = 0
        return orders.outcome

    outcome, [found] = child(parent, work)
    assert found.sentence == "the target"
    assert (outcome.code, outcome.sentence) == (Exit.RESUME_REFUSED, "no")


@pytest.mark.parametrize("error", [EnvError("no license", fault=True), OSError(28, "full"), MemoryError("none left")])
def test_lockstep_process_raises_what_its_child_could_not_handle(parent, error):
    with pytest.raises(type(error)) as raised:
        child(parent, lambda link: link.fail(error))
    assert str(raised.value) == str(error)
    assert vars(raised.value).get("fault") == vars(error).get("fault")


def test_lockstep_process_ends_a_run_whose_environment_fails_in_training_with_an_outcome(parent):
    def work(link):
        link.begin()
        link.fail(EnvError("environment 3 cannot be built again: OSError: port taken", fault=True))
        parent.worker.exit_code = 0

    outcome, _ = child(parent, work)
    assert (outcome.name, outcome.code) == ("environment fault", 6)
    assert outcome.sentence == "environment 3 cannot be built again: OSError: port taken"
    assert parent.recorder.lines[-1] == parent.shared.slot_table.row_counts()


def test_lockstep_process_shows_the_traceback_of_its_child(parent):
    class Bug(Exception):
        """Cannot be loaded by another process, which has no such class."""

    def work(link):
        try:
            raise Bug("a bug of the child")
        except Bug as error:
            link.fail(error)

    with pytest.raises(RuntimeError, match="Bug: a bug of the child") as raised:
        child(parent, work)
    assert "in work" in str(raised.value.__cause__)


OWN = """
def build():
    raise OSError("port taken")
"""


def test_an_error_of_an_environment_keeps_the_place_in_its_code(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    scope = {"__name__": "own"}
    exec(compile(OWN, tmp_path / "own.py", "exec"), scope)
    try:
        scope["build"]()
    except OSError as cause:
        error = EnvError("could not be built", fault=True)
        error.__cause__ = cause
    assert str(pickle.loads(pickle.dumps(_portable(error)))) == f"could not be built ({tmp_path / 'own.py'}, line 3)"


INSIDE, OUTSIDE = Exit.ENVIRONMENT, Exit.WORKER_LOST
IN_ENVIRONMENT = ", in environment 2, seed 0, step 0 of the episode"


@pytest.mark.parametrize(
    ("phase", "code", "exit_code", "sentence"),
    [
        (Phase.ENVIRONMENT, 0, INSIDE, f"lockstep exited (exit code 0{IN_ENVIRONMENT})"),
        (Phase.ENVIRONMENT, 3, INSIDE, f"lockstep exited (exit code 3{IN_ENVIRONMENT}): Error: last"),
        (Phase.BUILD, 1, INSIDE, "lockstep exited (exit code 1, building environment 2): Error: last"),
        (Phase.ENVIRONMENT, -11, INSIDE, f"lockstep exited (killed by SIGSEGV{IN_ENVIRONMENT})"),
        (Phase.ENVIRONMENT, -9, OUTSIDE, "lockstep was killed by SIGKILL"),
        (Phase.WORK, 1, OUTSIDE, "lockstep exited (exit code 1): Error: last"),
        (Phase.WORK, -6, OUTSIDE, "lockstep exited (killed by SIGABRT)"),
        (Phase.CLOSE, 0, OUTSIDE, "lockstep exited (exit code 0)"),
    ],
)
def test_lockstep_process_blames_an_environment_if_the_child_exited_inside_one(
    parent, phase, code, exit_code, sentence
):
    beat(parent.shared, 0, 9, phase, 2)
    parent.worker.exit_code = code
    assert parent.run() == Outcome.of(exit_code, sentence)


def test_lockstep_process_finds_what_was_sent_before_the_exit(parent):
    parent.link.end(End(ENDED, COUNTS, {}, []))
    parent.theirs.close()
    parent.worker.exit_code = 1  # while it closed environments
    assert parent.run() == ENDED


def test_lockstep_process_waits_for_the_exit_of_a_child_that_has_hung_up(parent):
    """Nothing is read any more, and the loop does not spin."""
    parent.theirs.close()
    ticks = []

    def wait(real=parent._wait):
        real()
        ticks.append(0)
        if len(ticks) == 5:
            parent.worker.exit_code = 4

    parent._wait = wait
    began = time.monotonic()
    assert parent.run().code == OUTSIDE
    assert len(ticks) == 5
    assert time.monotonic() - began > 4 * module.TICK_S * 0.9


def tick(parent, seconds, until=None):
    """Replace waiting by a clock that advances at every call; `until` is called with its time."""

    def wait():
        parent.now += seconds
        if until is not None:
            until(parent.now)

    parent._wait = wait


def test_lockstep_process_ends_a_run_whose_environment_hangs(parent):
    beat(parent.shared, 1, 9, Phase.ENVIRONMENT, 0)
    tick(parent, 50.0)
    outcome = parent.run()
    assert (outcome.code, parent.worker.dumped) == (Exit.ENVIRONMENT, True)
    assert outcome.sentence.startswith("environment step exceeded 120 s (env.step-timeout, in environment 4, seed 0")
    assert outcome.sentence.endswith(f"; see {parent.worker.output.path}")


def test_lockstep_process_ends_a_run_that_stalls(parent):
    tick(parent, 100.0)
    outcome = parent.run()
    assert (outcome.code, parent.worker.dumped) == (Exit.STALLED, True)
    assert outcome.sentence.startswith("no update for 300 s, and no new rows; see ")


def test_lockstep_process_names_the_signal_if_a_limit_is_exceeded_after_it(parent):
    beat(parent.shared, 0, 9, Phase.ENVIRONMENT, 0)
    press(parent, signal.SIGTERM)
    tick(parent, 50.0)
    outcome = parent.run()
    assert outcome.code == Exit.TERMINATED
    assert outcome.sentence.startswith("stopped by signal; no checkpoint was written, because environment step")


def test_lockstep_process_stops_at_once_at_a_second_signal(parent):
    press(parent)
    tick(parent, 0.5, lambda now: press(parent, signal.SIGTERM) if now == 3.0 else None)
    assert parent.run() == Outcome.of(Exit.INTERRUPTED, f"stopped by signal{SECOND_SIGNAL}")
    assert parent.now == 3.0


def test_lockstep_process_takes_signals_that_arrive_together_for_one(parent):
    """`timeout` sends two, and a shell may send one in addition to that of the terminal."""
    press(parent, signal.SIGTERM)
    press(parent, signal.SIGTERM)
    tick(parent, 0.5, lambda now: parent.link.end(End(ENDED, COUNTS, {}, [])) if now == 2.0 else None)
    assert parent.run() == ENDED


def test_lockstep_process_reports_an_exit_within_a_message(parent):
    """A killed child leaves half a message, for which `recv` raises OSError."""
    os.write(parent.link._connection.fileno(), b"\x00\x00\x10\x00half")
    parent.link._connection.close()
    parent.worker.exit_code = -signal.SIGKILL
    assert parent.run().code == Exit.WORKER_LOST


@pytest.mark.parametrize(
    ("beats", "signals", "seconds"),
    [(False, 0, CLOSE_S), (True, 0, CLOSE_ALL_S), (True, 1, CLOSE_ALL_S), (True, 2, 3.0)],
)
def test_lockstep_process_waits_for_environments_that_close_as_long_as_they_get_on(parent, beats, signals, seconds):
    parent.link.end(End(ENDED, COUNTS, {}, []))
    for _ in range(min(signals, 1)):
        press(parent)

    def until(now):
        if beats:
            beat(parent.shared, 0, int(now), Phase.CLOSE)
        if signals == 2 and now >= 3.0:
            press(parent)

    tick(parent, 0.5, until)
    assert parent.run() == ENDED
    assert seconds <= parent.now <= seconds + 2.0


def test_start_gives_the_child_a_name_that_a_script_without_a_guard_recognizes():
    from sfactory.supervisor.main_script import _reports_exit
    from sfactory.workers.names import LOCKSTEP

    assert _reports_exit(LOCKSTEP)
    assert os.path.basename(module.__file__) == "lockstep_process.py"


def test_lockstep_says_which_processes_are_left_after_sigkill(capsys):
    child = SimpleNamespace(pid=41, output=SimpleNamespace(trim=lambda: None), join=lambda: -9)
    killer = SimpleNamespace(mark=lambda name, generation: name, forget=lambda pid, mark: [42, 43])
    module._reap(child, killer, SimpleNamespace(writers=SimpleNamespace(log=print)))
    assert "lockstep: processes 42, 43 do not end after SIGKILL" in capsys.readouterr().out
