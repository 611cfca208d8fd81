"""The pulse of the supervisor: workers wait while it is stopped, and only then."""

import time

import pytest
from test_hand_over import Neighbours, make_run_spec

from sfactory.supervisor import pulse as module
from sfactory.supervisor.pulse import Pulse
from sfactory.workers import shared as shared_module
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import ListSink


@pytest.fixture
def shared(tmp_path):
    return SharedState.create(make_run_spec(tmp_path, samplers=1))


def test_pulse_is_silent_only_after_it_has_stopped(shared, monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    words = shared.supervisor
    assert not words.silent, "no supervisor, as in lockstep"
    pulse = Pulse(words)
    before = words.pulse
    assert before > 0
    deadline = time.monotonic() + 20
    while words.pulse <= before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not words.silent
    pulse.close()
    words.pulse -= int(1000 * (shared_module.SILENT_S + 1))
    assert words.silent


def test_worker_waits_while_the_supervisor_is_stopped(shared, monkeypatch):
    """It works again as soon as there is a pulse; its heartbeats go on, and say that it waits."""
    sampler = Sampler(0, shared, ListSink())
    turns = []

    def wait(timeout_s=0.0):
        turns.append(shared.slot_table.last_request(0).number)
        Neighbours(shared).respond()
        if len(turns) == 4:
            shared.supervisor.beat()
        if len(turns) == 8:
            shared.supervisor.stop = 1
        return False

    monkeypatch.setattr(type(sampler.bell), "wait", lambda bell, timeout_s=0.0: wait())
    shared.supervisor.pulse = 1
    before = turns[-1] if turns else shared.slot_table.last_request(0).number
    sampler.run()
    assert turns[:4] == [before] * 4
    assert turns[-1] > before
