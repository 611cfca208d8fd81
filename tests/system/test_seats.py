"""Who plays in which seat, in real lockstep runs of two-player games and with hand-made steps."""

import numpy as np
import pytest
import torch

import sfactory
from sfactory.envs import Episode, Step, make_spec
from sfactory.run import checkpoint
from sfactory.run.pool_files import RATINGS, member_path, pool_dir
from sfactory.shm.slots import unpack
from sfactory.shm.trajectory import CURRENT
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.opponent_pool import OpponentPool
from sfactory.workers.seats import Seats
from sfactory.workers.shared import RunSpec, SharedState

torch.set_num_threads(1)
GAME, LANES, T, GROUPS = "envpool/TicTacToe-v1", 8, 12, 2


def config_of(share=0.6, core="none", every=300, **selfplay):
    return sfactory.make_config(
        GAME,
        run={"mode": "lockstep", "device": "cpu", "seed": 3, "learner_threads": 1, "inference_threads": 1},
        sampling={"num_samplers": 1, "groups_per_sampler": GROUPS, "envs_per_group": LANES // 2, "rollout_length": T},
        batch={"minibatches": 2, "epochs": 1},
        model={"core": core, "hidden": (16,), "encoder": "mlp", **({"core_size": 8} if core != "none" else {})},
        checkpoint={"exact": False},
        selfplay={"share": share, "every": every, "pool": 50, "games": 20, **selfplay},
    )


def lockstep(folder, **settings):
    config = config_of(**settings)
    return Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(folder), 0))


class Watcher:
    """Copies of every slot, taken when the learner does."""

    def __init__(self, run):
        self.run, self.slots = run, []
        collect = run.learner._collect

        def copying():
            slots = collect()
            for slot in slots or []:
                fields = {name: run.shared.trajectories[name][slot].copy() for name in run.shared.trajectories.names}
                self.slots.append((slot[0], fields))
            return slots

        run.learner._collect = copying

    def lanes(self, name, length=T):
        """A field of all slots of each group one after the other, [group][steps, lanes]."""
        of_group = [[fields[name][:length] for group, fields in self.slots if group == g] for g in range(GROUPS)]
        return [np.concatenate(parts) for parts in of_group]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    run = lockstep(tmp_path_factory.mktemp("run"))
    watcher = Watcher(run)
    while run.learner.updates < 30:
        run.turn()
    yield run, watcher
    run.close()


def test_players_never_change_inside_an_episode_and_only_one_seat_learns(played):
    run, watcher = played
    met, changes, seats = set(), 0, []
    for player, first in zip(watcher.lanes("player"), watcher.lanes("first"), strict=True):
        pairs = player.reshape(len(player), -1, 2)
        begins = first.reshape(len(first), -1, 2).all(-1)
        changed = (pairs[1:] != pairs[:-1]).any(-1)
        assert not (changed & ~begins[1:]).any()
        changes += int(changed.sum())
        against = (pairs != CURRENT).any(-1)
        assert ((pairs == CURRENT).sum(-1)[against] == 1).all()
        seats += (pairs[against] == CURRENT).argmax(-1).tolist()
        met |= set(pairs[pairs != CURRENT].tolist())
    assert changes > 50
    assert met <= set(run.learner.pool.opponents) | {CURRENT}
    assert len(met) >= 2
    assert 0.3 < np.mean(seats) < 0.7, "both seats are played"
    for group, fields in watcher.slots:  # the bootstrap row of a slot is the first row of the next one
        later = [f for g, f in watcher.slots if g == group]
        place = next(i for i, f in enumerate(later) if f is fields)
        if place + 1 < len(later):
            np.testing.assert_array_equal(fields["player"][T], later[place + 1]["player"][0])


def test_the_share_of_episodes_against_the_pool_is_the_setting(tmp_path):
    shares = {}
    for share in (0.25, 1.0):
        run = lockstep(tmp_path / str(share), share=share, initial=True, every=10**6)
        watcher = Watcher(run)
        while run.learner.updates < 25:
            run.turn()
        against, episodes = 0, 0
        for player, first in zip(watcher.lanes("player"), watcher.lanes("first"), strict=True):
            begins = first.reshape(len(first), -1, 2).all(-1)
            against += int(((player.reshape(len(player), -1, 2) != CURRENT).any(-1) & begins).sum())
            episodes += int(begins.sum())
        shares[share] = against / episodes
        run.close()
    assert shares[1.0] == 1.0
    assert 0.15 < shares[0.25] < 0.35


def test_outcomes_are_those_of_the_rewards_of_the_seat_that_learns(played):
    run, watcher = played
    found = {1: 0, 0: 0, -1: 0}
    lanes = zip(*(watcher.lanes(name) for name in ("player", "first", "reward", "outcome", "terminated")), strict=True)
    for player, first, reward, outcome, terminated in lanes:
        returns = np.zeros(LANES // 2 * 2)
        for t in range(len(player)):
            begins = first[t].reshape(-1, 2).all(-1).repeat(2)
            returns[begins] = 0
            returns += reward[t]
            for env in range(len(returns) // 2):
                pair = slice(2 * env, 2 * env + 2)
                known = ~np.isnan(outcome[t, pair])
                against = (player[t, pair] != CURRENT).any()
                assert known.any() == (against and terminated[t, pair].any())
                if known.any():
                    seat = int((player[t, pair] == CURRENT).argmax())
                    assert known[seat]
                    assert not known[1 - seat]
                    value = int(outcome[t, pair][seat])
                    assert value == np.sign(returns[pair][seat] - returns[pair][1 - seat])
                    found[value] += 1
    assert min(found.values()) > 0, "won, drawn and lost games all occur"
    pool = run.learner.pool
    assert pool.games == sum(found.values())


def test_nothing_is_learned_from_rows_of_opponents(tmp_path):
    run = lockstep(tmp_path, initial=True, share=1.0)
    learner, counted = run.learner, 0
    copy = learner.staging.copy
    seen = []

    def checking(slots, trajectories, updates):
        nonlocal counted
        copy(slots, trajectories, updates)
        player = np.concatenate([trajectories["player"][slot] for slot in slots], axis=1)
        valid = learner.staging.batch.valid.numpy()
        assert not (valid & (player[:-1] != CURRENT)).any()
        acts = np.concatenate([trajectories["acting"][slot] for slot in slots], axis=1)
        seen.append(float((acts & (player != CURRENT)).mean()))
        counted += int(valid.sum())

    learner.staging.copy = checking
    while learner.updates < 5:
        run.turn()
    assert learner.env_steps == counted > 0
    assert min(seen) > 0.1, "opponents did act"
    run.close()


@pytest.mark.parametrize("core", ["none", "gru"])
def test_opponents_act_with_their_own_weights_and_memory(tmp_path, core):
    """Every row of every request is computed again by a network that was loaded from the pool."""
    run = lockstep(tmp_path, core=core)
    while run.learner.updates < 20:
        run.turn()
    inference, shared = run.inference, run.shared
    config, spec = run.learner.config, run.learner.run_spec.spec
    checked, models = {"current": 0, "opponent": 0}, {}
    for _ in range(15):
        requests, waiting = inference._pending()
        before = {name: shared.trajectories[name].copy() for name in ("memory",) if core != "none"}
        inference.step()
        for group in waiting.tolist():
            number, slot, t = unpack(requests[group])
            fields = {name: shared.trajectories[name][group, slot, t] for name in ("player", "first", "acting")}
            waits = ~fields["acting"]
            assert (shared.trajectories["params"][group, slot, t][waits] == 0).all()
            if core != "none":
                kept = np.where(fields["first"][:, None], 0, before["memory"][group, number % 2])
                np.testing.assert_array_equal(
                    shared.trajectories["memory"][group, (number + 1) % 2][waits], kept[waits]
                )
            for player in np.unique(fields["player"][~waits]):
                rows = (fields["player"] == player) & ~waits
                if player == CURRENT:
                    model = inference.model
                else:
                    model = models.setdefault(int(player), None) or policy(tmp_path, player, config, spec)
                    models[int(player)] = model
                obs = {name: torch.from_numpy(shared.trajectories[name][group, slot, t][rows]) for name in spec.obs}
                state = torch.from_numpy(before["memory"][group, number % 2][rows]) if core != "none" else None
                with torch.inference_mode():
                    out = model(obs, state, torch.from_numpy(fields["first"][rows]))
                close(shared.trajectories["params"][group, slot, t][rows], out.params)
                close(shared.trajectories["value"][group, slot, t][rows], out.value)
                if core != "none":
                    close(shared.trajectories["memory"][group, (number + 1) % 2][rows], out.state)
                checked["current" if player == CURRENT else "opponent"] += int(rows.sum())
        for sampler in run.samplers:
            sampler.step()
        run.learner.step()
    assert min(checked.values()) > 20
    run.close()


def policy(folder, player, config, spec):
    contents = checkpoint.read(member_path(folder, int(player)), ("model",))
    return checkpoint.policy_of(contents, config, spec)


def close(found, expected):
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_lockstep_runs_with_opponents_are_equal_to_the_bit(tmp_path):
    weights = []
    for name in "ab":
        run = lockstep(tmp_path / name)
        while run.learner.updates < 12:
            run.turn()
        weights.append(torch.cat([p.flatten() for p in run.learner.model.parameters()]))
        assert len(run.learner.pool.opponents) >= 2
        run.close()
    assert torch.equal(*weights)


# -- hand-made steps, three agents ----------------------------------------------------------------------------


@pytest.fixture
def seats(tmp_path):
    config = config_of(share=1.0)
    spec = make_spec(config.env.name, {})
    run_spec = RunSpec(config, spec.__class__(**{**vars(spec), "agents": ("a", "b", "c")}), str(tmp_path), 0)
    shared = SharedState.create(run_spec)
    shared.pool.write(np.array([2.0, 100, 200] + [0] * 48))
    yield Seats(shared, 0)
    shared.close()


def step_of(reward, first=None, episodes=()):
    rows = len(reward)
    never = np.zeros(rows, bool)
    return Step({}, np.array(reward, np.float32), never, never, ~never, never if first is None else first, episodes, ())


def test_seats_of_three_agents_compare_the_return_with_the_mean_of_the_others(seats):
    seats.begin(np.ones(4, bool), 0)
    players = seats.player.reshape(4, 3)
    assert ((players == CURRENT).sum(1) == 1).all()
    assert all(len(set(row[row != CURRENT])) == 1 for row in players), "one opponent in all other seats"
    rewards = np.where(players == CURRENT, 1.0, 0.0)  # 1 against a mean of 0
    rewards[1] = np.where(players[1] == CURRENT, 1.0, [0, 3, 0])  # against 3 / 2 or 0 or 3
    rewards[2] = 1.0
    ended = tuple(Episode(env, 0.0, 1) for env in (0, 2))
    outcome = seats.step(step_of(rewards.ravel(), episodes=ended), 1).reshape(4, 3)
    assert outcome[0][players[0] == CURRENT] == 1
    assert outcome[2][players[2] == CURRENT] == 0
    assert np.isnan(outcome[[1, 3]]).all()
    assert np.isnan(outcome[0][players[0] != CURRENT]).all()


def test_seats_are_kept_until_the_whole_environment_begins_again(seats):
    seats.begin(np.ones(4, bool), 0)
    before = seats.player.copy()
    first = np.ones((4, 3), bool)
    first[:, 1] = False  # two of three agents are dead
    for number in range(1, 40):
        seats.step(step_of(np.ones(12), first.ravel()), number)
    np.testing.assert_array_equal(seats.player, before)
    assert (seats.returns == 39).all()
    first[2] = True
    chosen = set()
    for number in range(40, 80):
        seats.step(step_of(np.ones(12), first.ravel()), number)
        assert (seats.returns[2] == 0).all()
        chosen.add(tuple(seats.player[6:9]))
    assert len(chosen) == 6, "three seats, two opponents"
    np.testing.assert_array_equal(seats.player[:6], before[:6])


def test_seats_depend_on_seed_group_environment_and_request_only(seats):
    seats.begin(np.ones(4, bool), 7)
    before = seats.player.copy()
    seats.begin(np.array([False, True, False, True]), 8)
    seats.begin(np.ones(4, bool), 7)
    np.testing.assert_array_equal(seats.player, before)
    state = {name: values.copy() for name, values in seats.state().items()}
    seats.begin(np.ones(4, bool), 9)
    seats.set_state(state)
    np.testing.assert_array_equal(seats.player, before)


def test_files_of_forgotten_opponents_are_deleted_when_a_checkpoint_is_saved_and_not_before(tmp_path):
    run = lockstep(tmp_path, every=60, pool=2, initial=True)
    learner, known = run.learner, set[int]()

    def folders():
        return {int(path.name) for path in pool_dir(tmp_path).iterdir() if path.name != RATINGS}

    while learner.updates < 25:
        run.turn()
        known |= set(learner.pool.opponents)
        assert folders() == known, "no checkpoint was saved"
    assert len(known) > len(learner.pool.opponents) >= 4
    learner.checkpointing.save()
    assert folders() == set(learner.pool.opponents)
    state = learner.checkpointing.state()
    while learner.updates < 50:
        run.turn()
    resumed = OpponentPool(learner.run_spec, run.shared.pool, print)
    resumed.load_state_dict(state["selfplay"])
    run.close()
