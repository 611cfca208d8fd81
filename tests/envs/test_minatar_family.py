"""MinAtar family: equal to the package frame by frame, with next-step autoreset."""

import json
from collections import Counter

import numpy as np
import pytest
from minatar_players import PLAYERS

from sfactory.envs import EnvError, make_group

GAMES = list(PLAYERS)


class Match:
    """A group of ours and as many environments of the package, stepped with equal seeds and actions."""

    def __init__(self, game, num_envs, seed=0, **settings):
        self.seeds = [seed + 7 * env for env in range(num_envs)]
        self.group = make_group(f"minatar/{game}", num_envs, self.seeds, settings)
        sticky, ramping = settings.get("sticky_action_prob", 0.1), settings.get("difficulty_ramping", True)
        import minatar  # with what it needs to draw, 1.3 s: only in processes that run these tests

        self.stock = [minatar.Environment(game, sticky, ramping) for _ in self.seeds]
        for env, own in zip(self.stock, self.seeds, strict=True):
            env.seed(own)
            env.reset()
        minimal = settings.get("minimal_actions", False)
        self.actions = self.stock[0].minimal_action_set() if minimal else list(range(6))
        self.draws, self.player = np.random.default_rng(seed), PLAYERS[game]
        self.over, self.returns, self.lengths = np.zeros((3, num_envs))
        self.events = Counter()
        self.compare(self.group.reset()["obs"])

    def compare(self, obs):
        expected = np.stack([env.state() for env in self.stock])
        if not np.array_equal(obs, expected):  # much faster than the following line, which explains
            np.testing.assert_array_equal(obs, expected)

    def play(self, steps, skill=1.0):
        """Step and compare; a share `skill` of the actions is the scripted player's, the others are random."""
        for _ in range(steps):
            choice = self.draws.integers(0, len(self.actions), len(self.stock))
            for row, env in enumerate(self.stock):
                if self.draws.random() < skill:
                    action = self.player(env.env, self.draws)
                    choice[row] = self.actions.index(action) if action in self.actions else 0
            self.step(choice)

    def step(self, choice):
        step, episodes = self.group.step({"action": choice}), []
        assert not step.faults
        for row, env in enumerate(self.stock):
            assert step.valid[row] == (not self.over[row])
            assert step.first[row] == self.over[row]
            if self.over[row]:
                env.reset()
                assert step.reward[row] == 0
                assert not step.terminated[row]
                assert not step.truncated[row]
                self.over[row] = False
                continue
            reward, self.over[row] = env.act(self.actions[choice[row]])
            assert step.reward[row] == reward
            self.returns[row] += reward
            self.lengths[row] += 1
            assert (step.terminated[row] or step.truncated[row]) == self.over[row]
            self.events["rewards above 1"] += reward > 1
            if self.over[row]:
                episodes.append((row, self.returns[row], self.lengths[row]))
                self.returns[row] = self.lengths[row] = 0
        self.compare(step.obs["obs"])
        assert list(step.episodes) == episodes
        self.events["episodes"] += len(episodes)


@pytest.mark.sampled(2)  # every game; each has tests of its own below
@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("settings", [{}, {"minimal_actions": True, "difficulty_ramping": False}])
def test_minatar_group_equals_the_package_in_every_frame_of_random_play(game, settings):
    match = Match(game, 3, seed=3, **settings)
    assert match.group.spec.actions["action"].sizes == (len(match.actions),)
    match.play(2600 if game == "freeway" else 1200, skill=0)
    assert match.events["episodes"] >= 3


@pytest.mark.sampled(2)  # every game
@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(("num_envs", "sticky", "ramping"), [(1, 0.0, True), (3, 0.1, False), (16, 0.1, True)])
def test_minatar_group_equals_the_package_in_every_frame_of_good_play(game, num_envs, sticky, ramping):
    match = Match(game, num_envs, 11, sticky_action_prob=sticky, difficulty_ramping=ramping)
    match.play(max(300, 2700 // num_envs), skill=0.95)
    match.play(50, skill=0)


@pytest.mark.parametrize("game", GAMES)
def test_minatar_group_of_many_games_equals_the_package(game):
    Match(game, 256, 2).play(15, skill=0)


def test_minatar_breakout_equals_the_package_when_all_bricks_are_gone():
    match = Match("breakout", 2, sticky_action_prob=0.0)
    match.play(1500)
    assert match.returns.min() > 60  # two boards and more


def test_minatar_freeway_equals_the_package_when_the_top_is_reached():
    match = Match("freeway", 8)
    match.play(400)
    assert match.returns.min() >= 2


@pytest.mark.parametrize("ramping", [True, False])
def test_minatar_asterix_equals_the_package_at_its_highest_difficulty(ramping):
    """Both are given the difficulty that a long episode leads to, and it rises in the second step after that."""
    match = Match("asterix", 4, difficulty_ramping=ramping)
    rules, full = match.group._rules, 0
    for t in range(60):
        for row, env in enumerate(match.stock):
            game = env.env
            game.spawn_speed, game.move_speed, game.ramp_index, game.ramp_timer = 2, 2 + t % 2, 6 + t % 2, 0
            rules.spawn_interval[row], rules.move_interval[row], rules.ramps[row] = 2, 2 + t % 2, 6 + t % 2
            rules.ramp_time[row] = rules.clock + 2
        match.play(20, skill=0.9)
        full += sum(None not in env.env.entities for env in match.stock)
        lived = match.lengths > 20
        assert (rules.spawn_interval[lived] == (1 if ramping else 2)).all()
        assert (rules.move_interval[lived] == 2).all() or not ramping
    assert full > 10  # no empty row: two random numbers without a third


@pytest.mark.parametrize("ramping", [True, False])
def test_minatar_space_invaders_equals_the_package_when_waves_are_cleared(ramping):
    """Now and then aliens are taken from both: two are left, which are fast, and the next wave is a whole one."""
    match = Match("space_invaders", 4, difficulty_ramping=ramping)
    rules, waves, interval = match.group._rules, 0, 12
    for t in range(1500):
        for row, env in enumerate(match.stock if t % 50 == 0 else []):
            aliens = np.argwhere(env.env.alien_map)
            if len(aliens) > 2:
                for y, x in aliens[:-2]:
                    env.env.alien_map[y, x] = 0
                    rules.aliens[row, y] &= ~(1 << x)
                rules.left[row] = 2
        match.play(1, skill=0.7)
        waves += sum(env.env.alien_map.sum() == 24 for env, age in zip(match.stock, match.lengths, strict=True) if age)
        interval = min(interval, rules.interval.min())
    assert waves >= 8
    assert (interval < 12) == ramping


def test_minatar_space_invaders_equals_the_package_when_aliens_reach_the_bottom():
    """Both have their aliens moved down, to the rows above the cannon or into its row, at either side."""
    match, draws = Match("space_invaders", 40), np.random.default_rng(0)
    for row, env in enumerate(match.stock):
        down, side = int(draws.integers(3, 7)), int(draws.choice([-2, 0, 2]))
        env.env.alien_map = np.roll(env.env.alien_map, (down, side), axis=(0, 1))
        env.env.alien_map[:, row % 10] = 0
        env.env.pos = match.group._rules.x[row] = int(draws.integers(0, 10))
        match.group._rules.aliens[row] = (env.env.alien_map.astype(int) << np.arange(10)).sum(axis=1)
        match.group._rules.left[row] = env.env.alien_map.sum()
    match.group._rules.draw()
    match.compare(match.group.obs["obs"])
    match.play(60, skill=0)
    assert match.events["episodes"] > 20


@pytest.mark.parametrize("ramping", [True, False])
def test_minatar_seaquest_equals_the_package_when_it_surfaces_with_six_divers(ramping):
    match = Match("seaquest", 6, difficulty_ramping=ramping)
    rules = match.group._rules
    for _ in range(5):
        for row, env in enumerate(match.stock):
            env.env.diver_count = rules.divers[row] = 5
        rules.draw()
        match.play(60)
    assert match.events["rewards above 1"] > 3
    assert (rules.move_interval.min() < 5) == ramping


@pytest.mark.parametrize("seed", range(6))
def test_minatar_seaquest_equals_the_package_where_many_things_meet_in_one_cell(seed):
    """Fish, submarines, divers and bullets are placed at random in few cells, so that the order of events decides."""
    num_envs = 60
    match, draws = Match("seaquest", num_envs, seed, sticky_action_prob=0.0), np.random.default_rng(seed)
    match.step(np.full(num_envs, 4))  # dive: the submarine is at the surface only at the start
    for row, env in enumerate(match.stock):
        env.env.sub_x, env.env.sub_y, env.env.diver_count = 5, int(draws.integers(2, 4)), int(draws.integers(3, 7))
        place_at_random(env.env, draws)
        copy_sea(env.env, match.group._rules, row)
    match.group._rules.draw()
    match.compare(match.group.obs["obs"])
    before = match.returns.sum()
    for _ in range(8):
        match.step(draws.choice([0, 1, 3], num_envs))
    assert match.returns.sum() - before > 20
    assert match.events["episodes"] > 10


def place_at_random(game, draws):
    """Fill the lists of a game of the package: rows 2 and 3 around the player, and rows 5 and 6 with its bullets."""

    def somewhere(rows):
        return int(draws.integers(3, 7)), int(draws.choice(rows)), bool(draws.integers(2))

    def several(count, rows, *timers):
        made = {(*somewhere(rows), *(int(draws.integers(0, 3)) for _ in timers)) for _ in range(count)}
        return [list(each) for each in draws.permutation(np.array(sorted(made), object)).tolist()]

    near, far = (2, 3), (5, 6)
    game.e_fish = several(2, far, "move") + several(2, near, "move")[: int(draws.integers(0, 2))]
    game.e_subs = several(3, far, "move", "shot") + several(2, near, "move", "shot")[: int(draws.integers(0, 2))]
    game.divers, game.f_bullets = several(4, near, "move"), several(2, far)[-2:]
    if draws.random() < 0.5:  # two that meet in one cell
        x, y, _ = somewhere(far)
        game.f_bullets = [[x - 1, y, True], [x + 1, y, False]][:: draws.choice([-1, 1])]
    game.e_bullets = several(2, (2, 3, 5, 6))
    game.shot_timer = 5


def copy_sea(game, rules, row):
    """Give a game of ours the lists of a game of the package."""
    kinds = [(0, game.e_fish), (240, game.e_subs), (480, game.divers)]
    items = [(kind, born, item) for kind, listed in kinds for born, item in enumerate(listed)]
    while rules.slots.shape[1] < len(items):
        rules._add_slots()
    begin = rules.clock + 1
    for slot, (kind, born, (x, y, right, *timers)) in enumerate(items):
        rules.slots[row, slot] = kind + 120 * right + 12 * y + x + 1
        rules.born[row, slot] = born - 100
        rules.move_time[row, slot] = begin + timers[0]
        rules.shot_time[row, slot] = begin + timers[1] if kind == 240 else -1
    bullets = [720 + 120 * right + 12 * y + x + 1 for x, y, right in game.f_bullets]
    rules.older[row], rules.newer[row] = ([1200, 1200] + bullets)[-2:]
    fired = [960 + 120 * right + 12 * y + x + 1 for x, y, right in game.e_bullets]
    rules.enemy_bullets = np.append(rules.enemy_bullets, fired).astype(int)
    rules.bullet_env = np.append(rules.bullet_env, [row] * len(fired)).astype(int)
    rules.player[row] = 2 * (10 * game.sub_y + game.sub_x) + game.sub_or
    rules.divers[row], rules.reload_time[row] = game.diver_count, begin + game.shot_timer


@pytest.mark.parametrize("oxygen", [0, 1, 12])
def test_minatar_seaquest_equals_the_package_when_oxygen_ends(oxygen):
    match = Match("seaquest", 6)
    match.play(40)
    for row, env in enumerate(match.stock):
        env.env.oxygen = match.group._rules.oxygen[row] = oxygen
    match.group._rules.draw()
    before = match.events["episodes"]
    for _ in range(15):
        match.step(np.full(6, 4))  # dive
    assert match.events["episodes"] > before


def test_minatar_seaquest_equals_the_package_in_a_crowded_sea():
    """The games are given the difficulty of 20 visits to the surface: an enemy in every step."""
    match = Match("seaquest", 12)
    rules, most = match.group._rules, 0
    for _ in range(12):
        for row, env in enumerate(match.stock):
            env.env.e_spawn_speed, env.env.move_speed, env.env.oxygen = 1, 2, 200
            rules.spawn_interval[row], rules.move_interval[row], rules.oxygen[row] = 1, 2, 200
        rules.draw()
        match.play(60, skill=0.8)
        most = max(most, *(len(e.env.e_fish + e.env.e_subs + e.env.divers) for e in match.stock))
    assert most > 8  # more than the slots at the start
    assert rules.slots.shape[1] >= 16


def run(seeds, steps=300, **settings):
    group = make_group("minatar/asterix", len(seeds), seeds, settings)
    actions = np.random.default_rng(1).integers(0, 6, (steps, len(seeds)))
    frames = [group.reset()["obs"].copy()]
    return np.array(frames + [group.step({"action": row}).obs["obs"].copy() for row in actions])


def test_minatar_group_repeats_frames_for_equal_seeds_only():
    first = run([5, 6])
    np.testing.assert_array_equal(first, run([5, 6]))
    assert (first != run([5, 7])).any()
    assert (first[:, 0] != first[:, 1]).any()


def test_minatar_freeway_truncates_and_breakout_terminates():
    group = make_group("minatar/freeway", 1, [0])
    group.reset()
    for _ in range(2500):
        step = group.step({"action": np.array([2])})
        assert not step.truncated[0]
    step = group.step({"action": np.array([2])})
    assert step.truncated[0]
    assert not step.terminated[0]
    assert step.episodes[0].length == 2501
    group = make_group("minatar/breakout", 1, [0])
    group.reset()
    while not (step := group.step({"action": np.array([0])})).terminated[0]:
        assert step.valid[0]
    assert not step.truncated[0]


def test_minatar_max_episode_steps_truncates_and_counts_from_zero_again():
    group = make_group("minatar/space_invaders", 2, [0, 1], {"max_episode_steps": 7})
    group.reset()
    steps = [group.step({"action": np.zeros(2, int)}) for _ in range(16)]
    assert [t for t, step in enumerate(steps) if step.truncated.all()] == [6, 14]
    assert [t for t, step in enumerate(steps) if not step.valid.any()] == [7, 15]
    assert {episode.length for step in steps for episode in step.episodes} == {7}
    assert group.spec.max_episode_steps == 7


def test_minatar_game_that_ends_at_max_episode_steps_is_terminated():
    def first_end(cap):
        group = make_group("minatar/breakout", 1, [0], {"max_episode_steps": cap})
        group.reset()
        while not (step := group.step({"action": np.array([0])})).episodes:
            pass
        return step

    length = first_end(None).episodes[0].length
    at, before = first_end(length), first_end(length - 1)
    assert (at.terminated[0], at.truncated[0]) == (True, False)
    assert (before.terminated[0], before.truncated[0]) == (False, True)


def test_minatar_reset_in_the_middle_of_a_game_starts_a_new_one():
    group = make_group("minatar/breakout", 1, [0])
    start = group.reset()["obs"].copy()
    group.step({"action": np.array([0])})
    assert (group.obs["obs"] != start).any()
    again = group.reset()["obs"]
    assert again[0, 3, :, 1].any()
    assert again[0, :, :, 3].sum() == 30


def test_minatar_last_observation_of_a_game_is_the_final_one():
    group = make_group("minatar/breakout", 1, [0], {"sticky_action_prob": 0.0})
    group.reset()
    while not (step := group.step({"action": np.array([0])})).terminated[0]:
        pass
    assert step.obs["obs"][0, 9, :, 1].any()  # the ball is in the bottom row
    step = group.step({"action": np.array([0])})
    assert step.obs["obs"][0, 3, :, 1].any()  # a new ball
    assert step.first[0]


@pytest.mark.parametrize("action", [6, -1, np.nan])
def test_minatar_group_reports_an_illegal_action_as_a_fault(action):
    group = make_group("minatar/breakout", 2, [0, 1])
    group.reset()
    step = group.step({"action": np.array([action, 0])})
    assert step.valid.tolist() == [False, True]
    assert step.first.tolist() == [True, False]
    assert "illegal action" in step.faults[0].message.splitlines()[0]


@pytest.mark.parametrize("action", [6, -1, 10**12, 2.5])
def test_minatar_group_ignores_the_action_of_a_reset_step(action):
    group = make_group("minatar/breakout", 1, [0], {"max_episode_steps": 1})
    group.reset()
    assert group.step({"action": np.zeros(1, int)}).truncated[0]
    step = group.step({"action": np.array([action])})
    assert not step.faults
    assert step.first[0]


def test_minatar_group_replaces_only_the_game_with_a_fault_and_gives_it_a_new_seed():
    group, same = (make_group("minatar/seaquest", 3, [0, 1, 2]) for _ in range(2))
    group.reset(), same.reset()
    draws = np.random.default_rng(0)
    for t in range(120):
        action = draws.integers(0, 6, 3)
        expected = same.step({"action": action})
        step = group.step({"action": np.where(np.arange(3) == 1, 6, action) if t == 50 else action})
        assert len(step.faults) == (t == 50)
        for name in ("reward", "terminated", "truncated", "valid"):
            np.testing.assert_array_equal(getattr(step, name)[::2], getattr(expected, name)[::2])
        np.testing.assert_array_equal(step.obs["obs"][::2], expected.obs["obs"][::2])
    assert group.seeds[::2] == [0, 2]
    replaced = make_group("minatar/seaquest", 1, [group.seeds[1]])
    assert group.seeds[1] != 1
    assert replaced.spec == group.spec


def test_minatar_replaced_game_plays_like_a_new_one_of_its_seed():
    sticky = {"sticky_action_prob": 0.9}  # it has not moved to the left before
    group = make_group("minatar/breakout", 1, [0], sticky)
    group.reset()
    for _ in range(30):
        group.step({"action": np.array([1])})
    group.step({"action": np.array([9])})
    new = make_group("minatar/breakout", 1, group.seeds, sticky)
    new.reset()
    for _ in range(60):
        one, two = group.step({"action": np.array([3])}), new.step({"action": np.array([3])})
        np.testing.assert_array_equal(one.obs["obs"], two.obs["obs"])
        assert one.episodes == two.episodes


@pytest.mark.parametrize("game", GAMES)
def test_minatar_snapshot_in_good_play_continues_exactly(game):
    """At any moment: bullets in flight, numbers read ahead, more slots than a new group has."""
    match = Match(game, 5, 4)
    match.play(150)
    other = make_group(f"minatar/{game}", 5, [1, 2, 3, 4, 5])
    other.reset()
    other.restore(json.loads(json.dumps(match.group.snapshot())))
    np.testing.assert_array_equal(other.obs["obs"], match.group.obs["obs"])
    match.group = other
    match.play(150)


def test_minatar_snapshot_of_an_earlier_version_is_refused():
    group = make_group("minatar/breakout", 1, [0])
    with pytest.raises(EnvError, match="minatar/breakout: saved by an earlier version"):
        group.restore({"games": [], "group": []})


def test_minatar_protocol_differs_between_incomparable_settings():
    variants = [{}, {"minimal_actions": True}, {"sticky_action_prob": 0.0}, {"difficulty_ramping": False}]
    protocols = {make_group("minatar/asterix", 1, [0], settings).spec.protocol for settings in variants}
    assert len(protocols) == 4
    with pytest.raises(EnvError):
        make_group("minatar/asterix", 1, [0], {"sticky": 0.5})
