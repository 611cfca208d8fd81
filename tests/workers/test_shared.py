"""Names of workers, and the words and memory that they share."""

import pytest
from test_hand_over import make_run_spec

from sfactory.monitor.episodes import Episodes
from sfactory.shm import atomics
from sfactory.workers.names import (
    evaluator_name,
    inference_name,
    learner_name,
    parse_worker,
    sampler_name,
)
from sfactory.workers.shared import (
    LearnerOutcome,
    Phase,
    SharedState,
    StopOrder,
    heartbeat_phase,
    heartbeat_word,
)


def test_parse_worker_is_the_inverse_of_the_name_functions():
    assert (learner_name(), inference_name(), evaluator_name()) == ("learner", "inference", "evaluator")
    assert sampler_name(12) == "sampler-12"
    for policy in (0, 3):
        assert parse_worker(learner_name(policy)) == ("learner", policy)
        assert parse_worker(inference_name(policy)) == ("inference", policy)
        assert parse_worker(evaluator_name(policy)) == ("evaluator", policy)
        assert parse_worker(sampler_name(policy)) == ("sampler", policy)


@pytest.mark.parametrize("name", ["", "sampler", "sampler-", "sampler-x", "learner-", "MainProcess", "sampler-1-2"])
def test_parse_worker_refuses_other_names(name):
    with pytest.raises(ValueError, match="not the name of a worker"):
        parse_worker(name)


def test_shared_words_are_read_and_written_through_atomics_store(tmp_path, monkeypatch):
    shared = SharedState.create(make_run_spec(tmp_path))
    stores, store = [], atomics.store
    monkeypatch.setattr(
        atomics, "store", lambda words, index, value: stores.append(index) or store(words, index, value)
    )
    learner, supervisor = shared.learner[0], shared.supervisor
    assert (learner.outcome, supervisor.stop, learner.saved) == (LearnerOutcome.RUNNING, StopOrder.RUN, False)
    learner.outcome, learner.saved, learner.env_steps = LearnerOutcome.STORAGE, True, 2**40
    supervisor.stop, supervisor.save_requests = StopOrder.NOW, 3
    shared.slot_table.learner_rows[0].trained += 5
    assert len(stores) == 6
    same = SharedState(shared.run_spec, shared.handles)  # as another process sees it
    assert same.learner[0].outcome is LearnerOutcome.STORAGE
    assert same.learner[0].saved is True
    assert same.learner[0].env_steps == 2**40
    assert same.supervisor.stop is StopOrder.NOW
    assert same.supervisor.save_requests == 3
    assert same.slot_table.row_counts().trained == 5


def test_published_episodes_are_read_by_another_process_as_they_were_written(tmp_path):
    shared = SharedState.create(make_run_spec(tmp_path))
    same = SharedState(shared.run_spec, shared.handles)  # as another process sees it
    seen, written = Episodes(), Episodes()
    for number in range(1, 4):
        written.add([(0.1 * number, 5 * number, 0)] * 40)
        shared.episodes.write(written.numbers())
        seen.set_numbers(same.episodes.read())
        assert seen.state() == written.state()


def test_heartbeat_word_holds_count_and_phase():
    word = heartbeat_word(7, Phase.ENVIRONMENT)
    assert heartbeat_phase(word) is Phase.ENVIRONMENT
    assert word != heartbeat_word(8, Phase.ENVIRONMENT)


def test_arena_layout_of_one_policy_matches_stored_checkpoints(tmp_path):
    """Lockstep checkpoints hold the arena as raw bytes: order and sizes of these arrays belong to the file format."""
    layout = make_run_spec(tmp_path).layout()  # 3 samplers, 6 groups of 4 environments, 2 slots of 3 steps
    first = {name: field.nbytes for name, field in list(layout.items())[:14]}
    assert first == {
        "orders": 64, "progress": 64, "heartbeat": 320, "position": 48, "episode_seed": 192, "episode_step": 192,
        "mail_begun": 64, "mail_done": 64, "mail_count": 64,
        "request": 384, "response": 48, "slot": 384, "discarded": 384, "trained": 64,
    }  # fmt: skip
