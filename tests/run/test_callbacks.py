"""Callbacks: called with rows and checkpoints; they stop, save, and fail in order."""

from types import SimpleNamespace

import pytest

from sfactory.config import Config
from sfactory.errors import Exit
from sfactory.run.callbacks import Callback, as_callbacks
from sfactory.run.outcome import Outcome

ROW = {"env_steps": 64, "seconds": 1.5, "charts/SPS": 3.0}


class Recording(Callback):
    def __init__(self):
        self.seen = []

    def on_row(self, run, row):
        self.seen.append((run.env_steps, row["charts/SPS"]))

    def on_checkpoint(self, run, path):
        self.seen.append(path.name)


class Failing(Callback):
    def on_row(self, run, row):
        raise KeyError("no such key")


@pytest.fixture
def begun(tmp_path):
    """A function that begins callbacks in a run folder; `saves` and `lines` are what they asked for and logged."""
    found = SimpleNamespace(saves=0, lines=[], run_dir=tmp_path)

    def save():
        found.saves += 1

    def begin(*given, resume=""):
        callbacks = as_callbacks(given)
        callbacks.begin(tmp_path, Config(), save, found.lines.append, resume)
        return callbacks

    found.begin = begin
    return found


def checkpoint(run_dir, steps):
    folder = run_dir / "checkpoints" / f"{steps:012d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return SimpleNamespace(checkpoint=steps, saved=True)


def test_callbacks_get_rows_and_each_new_checkpoint_once(begun):
    one = Recording()
    callbacks = begun.begin(one)
    callbacks.row(ROW)
    words = checkpoint(begun.run_dir, 64)
    callbacks.look(words)
    callbacks.look(words)
    callbacks.end()
    checkpoint(begun.run_dir, 128)
    callbacks.end()
    assert one.seen == [(64, 3.0), "000000000064", "000000000128"]
    assert callbacks.outcome() is None


def test_callbacks_do_not_report_the_checkpoint_that_a_run_continues_from(begun):
    one, words = Recording(), checkpoint(begun.run_dir, 64)
    callbacks = begun.begin(one, resume=str(begun.run_dir / "checkpoints" / "000000000064"))
    callbacks.look(words)
    callbacks.end()
    assert one.seen == []


def test_callback_may_stop_and_save(begun):
    def both(run, row):
        run.save()
        run.stop("enough")
        run.stop("later reasons do not count")

    callbacks = begun.begin(both)
    callbacks.row(ROW)
    outcome = callbacks.outcome()
    assert (outcome.name, outcome.code, outcome.sentence) == ("finished", 0, "stopped by a callback: enough")
    assert begun.saves == 1


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("", "stopped by a callback"),
        (None, "stopped by a callback"),
        ("two\n lines", "stopped by a callback: two lines"),
        (3, "stopped by a callback: 3"),
    ],
)
def test_callback_may_give_any_reason_to_stop(reason, sentence, begun):
    callbacks = begun.begin(lambda run, row: run.stop(reason))
    callbacks.row(ROW)
    assert callbacks.outcome().sentence == sentence


def test_callback_knows_the_steps_of_a_resumed_run_before_its_first_row(begun):
    seen = []

    class Looking(Callback):
        def on_checkpoint(self, run, path):
            seen.append(run.env_steps)

    checkpoint(begun.run_dir, 64)
    callbacks = begun.begin(Looking(), resume=str(begun.run_dir / "checkpoints" / f"{64:012d}"))
    callbacks.look(checkpoint(begun.run_dir, 128))
    assert seen == [64]


def test_callback_that_fails_ends_the_run_and_no_other_is_called(begun):
    after = Recording()
    callbacks = begun.begin(Failing(), after)
    callbacks.row(ROW)
    callbacks.row(ROW)
    outcome = callbacks.outcome()
    assert (outcome.name, outcome.code) == ("callback failed", Exit.BUG)
    assert outcome.sentence == "Failing.on_row raised KeyError: 'no such key'"
    assert outcome.failed
    assert isinstance(callbacks.error, KeyError)
    assert after.seen == []
    (logged,) = begun.lines
    assert "Traceback" in logged
    assert "test_callbacks.py" in logged


@pytest.mark.parametrize(
    ("before", "after"),
    [(Exit.FINISHED, "callback failed"), (Exit.INTERRUPTED, "callback failed"), (Exit.WORKER_LOST, "worker lost")],
)
def test_amend_reports_a_callback_that_failed_at_the_end_unless_the_run_failed_too(begun, before, after):
    callbacks, outcome = begun.begin(Failing()), Outcome.of(before, "why")
    assert not callbacks.amend(outcome)
    callbacks.row(ROW)
    assert callbacks.amend(outcome) == (after == "callback failed")
    assert outcome.name == after
    assert not callbacks.amend(outcome), "a second time nothing changes"


@pytest.mark.parametrize("wrong", [3, Recording, "print"])
def test_as_callbacks_refuses_what_is_no_callback(wrong):
    with pytest.raises(ValueError, match=r"expected a sfactory.Callback or a function of \(run, row\)"):
        as_callbacks([wrong])


def test_as_callbacks_takes_none_and_every_iterable():
    assert not as_callbacks(None)
    assert as_callbacks(callback for callback in [Recording(), print])


class Misnamed(Callback):
    def on_rows(self, run, row):
        pass


class Awaited(Callback):
    async def on_row(self, run, row):
        pass


class Short(Callback):
    def on_checkpoint(self, run):
        pass


class Called:
    async def __call__(self, run, row):
        pass


async def awaited(run, row):
    pass


def generator(run, row):
    yield


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Recording, r"got the class Recording; write Recording\(\.\.\.\)"),
        (Misnamed(), "Misnamed has neither on_row nor on_checkpoint, so it is never called"),
        (awaited, "awaited is a coroutine or a generator, which would never run"),
        (generator, "generator is a coroutine or a generator, which would never run"),
        (Awaited(), r"Awaited\.on_row is a coroutine or a generator"),
        (Called(), "Called is a coroutine or a generator"),
        (Short(), r"Short\.on_checkpoint must take two arguments, \(run, path\)"),
        (lambda run: None, r"<lambda> must take two arguments, \(run, row\)"),
    ],
)
def test_as_callbacks_refuses_what_would_never_run_or_fail_at_the_first_row(wrong, message):
    with pytest.raises(ValueError, match=message):
        as_callbacks(wrong)


def test_a_run_says_where_it_is_and_an_error_without_words_has_no_colon(begun):
    def failing(run, row):
        raise TimeoutError

    seen = []
    callbacks = begun.begin(lambda run, row: seen.append(repr(run)), failing)
    callbacks.row(ROW)
    assert seen == [f"<RunHandle of {str(begun.run_dir)!r} at 64 steps>"]
    assert callbacks.outcome().sentence.endswith("failing raised TimeoutError")
