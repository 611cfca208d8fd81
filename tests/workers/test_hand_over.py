"""Samplers and the slot table in one process: no row is lost or used twice, whenever a sampler is killed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sfactory.config import BatchConfig, Config, Env, Run, Sampling
from sfactory.device.ranks import Ranks
from sfactory.envs import EnvFault, make_spec
from sfactory.envs.spec import Episode
from sfactory.shm import atomics
from sfactory.shm.slots import FREE, LEARNING, READY, unpack
from sfactory.workers.sampler import MOST_INFOS, Sampler, env_seeds, slot_noise
from sfactory.workers.shared import RunSpec, SharedState
from sfactory.workers.worker import ListSink

T, E, SLOTS = 3, 4, 2


def make_run_spec(tmp_path, samplers=3, groups=2, slots=SLOTS, **env):
    settings = {"length": 5, **env}
    config = Config(
        run=Run(debug=True),
        env=Env(name="faults/count", settings=settings),
        sampling=Sampling(samplers, groups, E, T, slots),
        batch=BatchConfig(slots=0),
    )
    return RunSpec(config, make_spec("faults/count", settings), str(tmp_path), 0)


@pytest.fixture
def shared(tmp_path):
    return SharedState.create(make_run_spec(tmp_path))


class Neighbours:
    """Inference and learner in twenty lines: respond to every request, train every READY slot."""

    def __init__(self, shared):
        self.shared, self.slot_table, self.trained = shared, shared.slot_table, []

    def respond(self):
        slot_table = self.slot_table
        for group in np.flatnonzero(slot_table.request_words != slot_table.response_words).tolist():
            _, slot, t = unpack(slot_table.request_words[group])
            fields = self.shared.trajectories
            fields["action"][group, slot, t] = 0
            for name in ("log_prob", "value", "params", "policy_version"):
                fields[name][group, slot, t] = 0
            slot_table.respond(group, int(slot_table.request_words[group]))

    def train(self):
        for group, slot in self.slot_table.in_state(READY):
            self.slot_table.transition(group, slot, READY, LEARNING)
            fields = self.shared.trajectories
            self.trained.append({name: fields[name][group, slot].copy() for name in fields.names} | {"group": group})
            fields.poison(group, slot)
            self.slot_table.learner_rows[0].trained += T * E
            self.slot_table.transition(group, slot, LEARNING, FREE)


def check_rows(trained):
    """Every row of a slot was written while it was filled, by one sampler: no poison, no torn rows."""
    for slot in trained:
        for name, array in slot.items():
            if name != "group" and array.dtype.kind == "f":
                assert np.isfinite(array).all(), name
        counter = slot["obs"][:, :, 1]  # the environment's own step counter
        inside = slot["valid"] & ~slot["terminated"]
        assert (np.diff(counter, axis=0)[inside] == 1).all()


def test_samplers_deliver_every_row_once_and_in_order(shared):
    neighbours, samplers = Neighbours(shared), [Sampler(i, shared, ListSink()) for i in range(3)]
    for _ in range(60):
        neighbours.respond()
        for sampler in samplers:
            sampler.step()
        neighbours.train()
    check_rows(neighbours.trained)
    assert len(neighbours.trained) > 60
    for group in range(6):
        mine = [slot for slot in neighbours.trained if slot["group"] == group]
        for before, after in itertools.pairwise(mine):  # row T of a slot is row 0 of the next
            np.testing.assert_array_equal(before["obs"][T], after["obs"][0])
            np.testing.assert_array_equal(before["first"][T], after["first"][0])
    assert shared.slot_table.row_counts().consistent


def test_sampler_waits_without_free_slots_and_drops_no_row(shared):
    neighbours, sampler = Neighbours(shared), Sampler(0, shared, ListSink())
    for _ in range(50):
        neighbours.respond()
        sampler.step()
    assert len(shared.slot_table.in_state(READY)) == 2 * SLOTS
    assert not sampler.step()
    requests = shared.slot_table.request_words.copy()
    neighbours.train()
    assert sampler.step()
    assert (shared.slot_table.request_words[:2] != requests[:2]).all()


class Killed(Exception):
    """The process was killed."""


def run_with_a_kill(shared, kill_at):
    """Kill a sampler at its n-th store of a shared word, restart it; return its neighbours and whether it survived."""
    neighbours, stores, real = Neighbours(shared), 0, atomics.store
    armed = True

    def store(array, index, value):
        nonlocal stores, armed
        if armed:
            if stores == kill_at:
                armed = False
                raise Killed
            stores += 1
        real(array, index, value)

    def run_sampler(generation, steps):
        sampler = Sampler(0, shared, ListSink(), generation)
        for _ in range(steps):
            atomics.store = real  # the neighbours are not killed
            neighbours.respond()
            neighbours.train()
            atomics.store = store
            sampler.step()
            atomics.store = real
            counts = shared.slot_table.row_counts()
            assert counts.consistent or any(run.number < 0 for run in sampler.runs), counts

    try:
        atomics.store = store
        run_sampler(0, 26)
    except Killed:
        atomics.store = real
        run_sampler(1, 26)
    finally:
        atomics.store = real
    return neighbours, armed


def test_sampler_killed_at_any_store_leaves_no_torn_row_and_consistent_row_counts(tmp_path):
    kills = 0
    for kill_at in range(400):
        shared = SharedState.create(make_run_spec(tmp_path, samplers=1))
        neighbours, survived = run_with_a_kill(shared, kill_at)
        check_rows(neighbours.trained)
        assert shared.slot_table.row_counts().consistent
        shared.close()
        if survived:
            break
        kills += 1
    assert survived
    assert kills > 100  # heartbeats, requests and hand-overs were all interrupted


def test_restarted_sampler_waits_for_the_response_to_its_previous_generation(shared):
    neighbours, first = Neighbours(shared), Sampler(0, shared, ListSink())
    first.step()
    first.step()
    assert shared.slot_table.pending(0)
    restarted = Sampler(0, shared, ListSink(), generation=1)
    assert not restarted.step()
    neighbours.respond()
    number = shared.slot_table.last_request(0).number
    restarted.step()
    restarted.step()
    assert shared.slot_table.last_request(0).number == number + 1  # numbers never restart
    assert shared.slot_table.row_counts().discarded == number * E * 2


def test_slot_noise_depends_on_seed_group_launch_and_request_only():
    shape = (T, E, 1)
    base = slot_noise(1, 0, 0, 1, shape)
    np.testing.assert_array_equal(base, slot_noise(1, 0, 0, 1, shape))
    for other in ((2, 0, 0, 1), (1, 1, 0, 1), (1, 0, 1, 1), (1, 0, 0, 4)):
        assert (slot_noise(*other, shape) != base).all()
    assert 0.0 <= base.min() <= base.max() < 1.0


def test_env_seeds_differ_for_every_environment_launch_and_generation():
    seeds = [s for launch in range(2) for generation in range(3) for s in env_seeds(1, launch, generation, 0, 50)]
    assert len(set(seeds)) == len(seeds)
    assert env_seeds(1, 0, 0, 10, 5) == env_seeds(1, 0, 0, 0, 50)[10:15]


def test_sampler_marks_reset_rows_invalid_and_the_next_row_first(shared):
    neighbours, sampler = Neighbours(shared), Sampler(0, shared, ListSink())
    for _ in range(60):
        neighbours.respond()
        sampler.step()
        neighbours.train()
    slots = [slot for slot in neighbours.trained if slot["group"] == 0]
    rows = {
        name: np.concatenate([slot[name][:T] for slot in slots]) for name in ("first", "valid", "terminated", "reward")
    }
    ended = rows["terminated"]
    assert ended.any()
    np.testing.assert_array_equal(
        ~rows["valid"][1:], ended[:-1]
    )  # the row after an end, and no other, is the reset row
    np.testing.assert_array_equal(rows["first"][1:], ~rows["valid"][:-1])
    assert (rows["reward"][~rows["valid"]] == 0).all()


def test_run_spec_derives_shapes_and_worker_names(tmp_path):
    run_spec = make_run_spec(tmp_path)
    assert run_spec.schema.num_noise == 1
    assert run_spec.workers == ("learner", "inference", "sampler-0", "sampler-1", "sampler-2")
    assert [run_spec.sampler_of(g) for g in range(6)] == [0, 0, 1, 1, 2, 2]
    gru = replace(
        run_spec, config=replace(run_spec.config, model=replace(run_spec.config.model, core="gru", core_size=7))
    )
    assert gru.schema.state_size == 7


def native_reset(group):
    """As native code after non-finite data: where one environment fails, all are reset."""
    step = group.step

    def native_step(action):
        result = step(action)
        return result._replace(valid=np.zeros(E, bool), first=np.ones(E, bool)) if result.faults else result

    group.step = native_step


def played(tmp_path, calls, change=lambda group: None, **settings):
    """A sampler with one group of E environments that made so many calls of its `step`, and its messages."""
    shared = SharedState.create(make_run_spec(tmp_path, samplers=1, groups=1, **settings))
    neighbours, sink = Neighbours(shared), ListSink()
    sampler = Sampler(0, shared, sink)
    group = sampler.runs[0].envs
    change(group)
    while group.calls < calls:
        neighbours.respond()
        sampler.step()
        neighbours.train()
    return sampler, sink


def of_kind(sink, kind):
    return [payload for of, _, payload in sink.messages if of == kind]


def test_sampler_sends_its_steps_and_broken_episodes_before_the_failure(tmp_path):
    """Episodes have 5 steps and a reset row: at call 8, the ninth, an episode is two steps old."""
    sampler, sink = played(tmp_path, 10, raise_at=8, env=2)
    assert [kind for kind, _, _ in sink.messages if kind != "log"] == ["episodes", "steps", "fault"], "at once"
    assert len(of_kind(sink, "episodes")[0]) == E
    assert of_kind(sink, "steps") == [(8 * E - 1, 1)], "of 9 rows one was a reset; in the last one failed"
    sampler.flush()
    assert of_kind(sink, "steps")[1:] == [(E, 0)]


def test_sampler_counts_the_episodes_that_a_native_group_resets_with_a_failed_one(tmp_path):
    _, sink = played(tmp_path, 10, native_reset, raise_at=8)
    assert of_kind(sink, "steps") == [(7 * E, E)]


def test_sampler_counts_a_failed_reset_as_one_broken_episode(tmp_path):
    _, sink = played(tmp_path, 7, native_reset, raise_at=5)  # call 5 is the reset row of every environment
    assert of_kind(sink, "steps") == [(5 * E, 1)], "the episodes of the others were complete"


def test_sampler_sends_the_numbers_of_info_with_the_episodes(tmp_path):
    def informed(group):
        step = group.step

        def informed_step(action):
            result = step(action)
            return result._replace(infos=tuple((env, {"success": float(env)}) for env, _, _ in result.episodes))

        group.step = informed_step

    sampler, sink = played(tmp_path, 6, informed)
    sampler.flush()
    sampler.flush()
    (episodes,) = of_kind(sink, "episodes")
    assert [episode[3:] for episode in episodes] == [({"success": float(env)},) for env in range(E)]


MANY = tuple(Episode(env, 1.0, 3) for env in range(MOST_INFOS))


@pytest.mark.parametrize(
    "step",
    [
        {"faults": (EnvFault(2, "ValueError: " + "x" * 3_000_000),)},
        {"infos": tuple((env, {"a": 1.0}) for env in range(MOST_INFOS)), "episodes": MANY},
    ],
    ids=["a long fault", "many infos"],
)
def test_sampler_sends_no_message_that_does_not_fit_into_the_queue(shared, monkeypatch, step):
    """A longer text is shortened, and numbers of episodes are sent before they are too many."""
    sampler = Sampler(0, shared, ListSink())
    run = sampler.runs[0]
    assert run.recover()
    run.begin()
    monkeypatch.setattr(run, "act", lambda: run.envs.step({"action": np.zeros(E, np.int64)})._replace(**step))
    sampler._act(run)
    sent = {kind: payload for kind, _, payload in sampler.sink.messages}
    if "faults" in step:
        assert sent["fault"].startswith("environment 2: ValueError: xxx")
        assert len(sent["fault"]) < 100_000
    else:
        assert [episode[3] for episode in sent["episodes"]] == [{"a": 1.0}] * MOST_INFOS
        assert not sampler.episodes
        assert not sampler.num_infos


def test_environments_and_noise_of_all_ranks_have_seeds_of_their_own_as_if_they_were_one_run(tmp_path):
    one = make_run_spec(tmp_path, samplers=1, groups=4)
    of_ranks = [
        replace(make_run_spec(tmp_path / str(rank), samplers=1, groups=2), ranks=Ranks(rank, 2, rank, 2))
        for rank in range(2)
    ]
    samplers = [Sampler(0, SharedState.create(run_spec), ListSink()) for run_spec in (one, *of_ranks)]
    alone, *together = [[run.envs.seeds for run in sampler.runs] for sampler in samplers]
    assert [list(seeds) for seeds in [*together[0], *together[1]]] == [list(seeds) for seeds in alone]
    assert len({seed for seeds in alone for seed in seeds}) == 4 * E
    noise = [[run.in_job for run in sampler.runs] for sampler in samplers]
    assert noise[1] + noise[2] == noise[0] == [0, 1, 2, 3]
