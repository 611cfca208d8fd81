"""Evaluation plays exactly the requested number of episodes, without preferring short ones."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builders import MY_ENV, trained

import sfactory
from sfactory.config import Config, Env
from sfactory.config.parsing import RawValue
from sfactory.envs import EnvError, EnvFault, Episode, Step, make_spec
from sfactory.errors import CommandError, Exit
from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.play import episodes
from sfactory.play.episodes import MAX_ENVS, MAX_FAULTS, model_policy, play, split_evenly
from sfactory.play.evaluate import EvalResult, MultiTaskEvalResult, chosen_checkpoint, differences
from sfactory.play.evaluate import evaluation as evaluation_of
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import _write_manifest

pytestmark = pytest.mark.usefixtures("forked")


class FakeGroup:
    """Environment `number` plays episodes of `length(number)` steps with reward 1; next-step autoreset."""

    def __init__(self, num_envs, first_env, length, breaks=()):
        self.numbers = list(range(first_env, first_env + num_envs))
        self.length, self.breaks, self.closed = length, breaks, False

    def reset(self):
        self.t = np.zeros(len(self.numbers), int)
        self.over = np.zeros(len(self.numbers), bool)
        return {"obs": self.t[:, None].astype(np.float32)}

    def step(self, action):
        assert action["action"].shape == (len(self.numbers),)
        valid, ends, episodes, faults = ~self.over, np.zeros(len(self.numbers), bool), [], []
        for i, number in enumerate(self.numbers):
            if self.over[i]:
                self.over[i], self.t[i] = False, 0
                continue
            self.t[i] += 1
            if number in self.breaks and self.t[i] == 2:
                faults.append(EnvFault(i, "broken"))
                valid[i], self.t[i] = False, 0
            elif self.t[i] == self.length(number):
                ends[i] = self.over[i] = True
                episodes.append(Episode(i, float(self.t[i]), int(self.t[i])))
        reward = valid.astype(np.float32)
        obs = {"obs": self.t[:, None].astype(np.float32)}
        return Step(obs, reward, ends, np.zeros_like(ends), valid, ~valid, tuple(episodes), tuple(faults))

    def close(self):
        self.closed = True


def run(episodes, length=lambda number: 5, max_steps=1000, breaks=()):
    groups = []

    def make(num_envs, first_env):
        groups.append(FakeGroup(num_envs, first_env, length, breaks))
        return groups[-1]

    def policy(obs, first):
        return {"action": np.zeros(len(first), int)}

    results = play(make, policy, episodes, max_steps)
    assert all(group.closed for group in groups)
    return results, groups


@pytest.mark.parametrize("episodes", [1, 3, MAX_ENVS, MAX_ENVS + 1, 100])
def test_play_plays_exactly_n_episodes(episodes):
    results, groups = run(episodes, lambda number: 2 + number % 7)
    assert len(results.returns) == len(results.lengths) == episodes
    assert len(groups) == 1
    assert results.returns == [float(length) for length in results.lengths]


class PairGroup(FakeGroup):
    """Two agents, of which one gets 3 for every step. In step 3 both wait, and the other's own episode ends there."""

    def reset(self):
        return {"obs": np.repeat(super().reset()["obs"], 2, axis=0)}

    def step(self, action):
        one = super().step({"action": action["action"][::2]})
        first, ends = (np.repeat(x, 2) for x in (one.first, one.terminated))
        reward = np.outer(one.reward, [3, 0]).ravel()
        late, time = np.tile([False, True], len(one.first)), np.repeat(self.t, 2)
        valid = ~first & (time != 3) & ~(late & (time > 3))
        first |= late & (time > 3)
        obs = {"obs": np.repeat(one.obs["obs"], 2, axis=0)}
        episodes = tuple(Episode(i, 1.5 * length, length) for i, _, length in one.episodes)
        return Step(obs, reward, ends, ends & False, valid, first, episodes, one.faults)


def test_play_gives_every_agent_a_row_and_counts_steps_of_the_environment():
    seen = []

    def policy(obs, first):
        seen.append((len(first), first.all()))
        return {"action": np.zeros(len(first), int)}

    results = play(lambda num_envs, first: PairGroup(num_envs, first, lambda number: 5), policy, 4, 100, num_envs=2)
    assert (results.returns, results.lengths) == ([7.5] * 4, [5] * 4)
    assert [t for t, (rows, first) in enumerate(seen) if first] == [0, 6]
    assert {rows for rows, _ in seen} == {4}
    seen.clear()
    capped = play(lambda num_envs, first: PairGroup(num_envs, first, lambda number: 50), policy, 2, 7, num_envs=2)
    assert (capped.returns, capped.lengths, capped.capped) == ([10.5] * 2, [7] * 2, 2)
    assert len(seen) == 7  # a step in which all agents wait counts


def test_play_does_not_prefer_short_episodes():
    """Half of the environments play 2 steps, half 50. The first 64 episodes to end would all be short."""
    results, _ = run(2 * MAX_ENVS, lambda number: 2 if number % 2 else 50)
    assert np.mean(results.returns) == 26.0


def test_split_evenly_is_even_and_complete():
    assert split_evenly(10, 4) == [3, 3, 2, 2]
    assert sum(split_evenly(100, MAX_ENVS)) == 100


def test_play_counts_a_capped_episode_with_its_return_so_far():
    results, groups = run(MAX_ENVS * 2, lambda number: 10**9 if number == 0 else 5, max_steps=20)
    assert results.capped == 1
    assert sorted(results.lengths)[-1] == 20
    assert len(results.returns) == MAX_ENVS * 2
    assert len(groups) == 2  # the rest of the capped environment's share went to a new one
    assert groups[1].numbers == [MAX_ENVS]


def test_play_does_not_count_an_episode_that_ends_at_the_limit_as_capped():
    results, _ = run(4, lambda number: 20, max_steps=20)
    assert (results.capped, results.lengths) == (0, [20] * 4)


def test_play_replaces_a_failed_environment_and_discards_its_episode():
    results, groups = run(MAX_ENVS, breaks={0, 3})
    assert results.faults == 2
    assert len(results.returns) == MAX_ENVS
    assert set(results.returns) == {5.0}
    assert groups[1].numbers == [MAX_ENVS, MAX_ENVS + 1]


def test_play_raises_the_environments_fault_after_too_many_failures():
    sentence = (
        r"30 environments failed during the evaluation, and their episodes were cut \(at most 10 are replaced; 0 "
        r"complete ones\); the first: broken$"
    )
    with pytest.raises(EnvError, match=sentence) as caught:
        run(3 * MAX_FAULTS, breaks=range(10**6))
    assert caught.value.exit_code == Exit.ENVIRONMENT


def test_play_states_the_return_of_the_complete_episodes_if_too_many_failed():
    with pytest.raises(EnvError, match=r"19 complete ones have a mean return of 5\.00"):
        run(30, breaks=range(MAX_FAULTS + 1))


def test_play_tolerates_one_failure_in_twenty_of_many_episodes():
    results, _ = run(1000, breaks=range(2 * MAX_FAULTS))
    assert (len(results.returns), results.faults) == (1000, 2 * MAX_FAULTS)
    with pytest.raises(EnvError, match="at most 15 are replaced"):
        run(300, breaks=range(2 * MAX_FAULTS))


def test_play_collects_the_numbers_of_info_of_the_episodes_it_counts():
    """Environment 1 ends twice as often as environment 0: its further episodes do not count."""

    class Informed(FakeGroup):
        def step(self, action):
            step = super().step(action)
            return step._replace(infos=tuple((env, {"success": float(env)}) for env, _, _ in step.episodes))

    groups = iter([Informed(2, 0, lambda number: 2 if number else 9)])
    results = play(lambda *_: next(groups), lambda obs, first: {"action": np.zeros(len(first), int)}, 2, 100)
    assert results.infos == {"success": [1.0, 0.0]}


def test_iqm_trims_a_quarter_at_each_end():
    scores = np.array([1000.0, 1, 2, 3, 4, 5, 6, -1000])
    assert iqm(scores) == pytest.approx(3.5)
    assert iqm(np.array([1.0, 2.0, 9.0])) == pytest.approx(4.0)  # int(0.25 * 3) = 0: nothing is trimmed
    np.testing.assert_allclose(iqm(np.stack([scores, scores + 1]), axis=1), [3.5, 4.5])


def test_bootstrap_interval_covers_the_mean_at_its_nominal_rate():
    draws = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap([draws.normal(size=50)], np.mean, resamples=300, seed=trial)
        hits += low < 0.0 < high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_is_stratified():
    """Two tasks of constant scores: within a task there is nothing to resample, so the interval is a point."""
    low, high = bootstrap([np.zeros(10), np.full(10, 100.0)], np.mean)
    assert low == high == 50.0
    low, high = bootstrap([np.concatenate([np.zeros(10), np.full(10, 100.0)])], np.mean)
    assert high - low > 20.0


def evaluation(**changes):
    fields = dict(
        env="x/y", protocol="x/y sticky 0.1", greedy=False, seed=0, max_steps=100, env_steps=5000,
        returns=(1.0, 2.0, 3.0), lengths=(10, 20, 30), capped=0, faults=0,
    )  # fmt: skip
    return EvalResult(**{**fields, **changes})


def test_eval_report_names_protocol_and_action_selection():
    text = evaluation().report()
    assert "sampled" in text
    assert "greedy" not in text
    assert "x/y sticky 0.1" in text
    assert "mean      2.00" in text
    assert "capped" not in text
    assert "faults" not in text
    assert "info" not in text
    assert (
        "info      is_success 0.93, distance 1.5e-05"
        in evaluation(infos={"is_success": 0.93, "distance": 1.5e-5}).report()
    )
    text = evaluation(greedy=True, capped=2, faults=1).report()
    assert "greedy" in text
    assert "sampled" not in text
    assert "2 of 3 episodes reached 100 steps" in text
    assert "1 episodes were discarded after an environment failure and replaced: 25% of all" in text


def test_report_names_listed_infos_that_no_episode_had():
    text = evaluation(infos={"is_success": 1.0}, missing_infos=("sucess", "a.b")).report()
    assert "info      is_success 1\n" in text
    assert "info      sucess, a.b: no number of this name at the end of any episode" in text


def test_evaluate_finds_listed_infos_that_no_episode_had(tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(MY_ENV)
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", "my:MyEnv", checkpoint={"exact": False}, stop={"env_steps": 64})
    found = sfactory.evaluate(run, episodes=1, max_steps=5, env={"info_keys": ["nothing"]})
    assert found.missing_infos == ("nothing",)


def test_eval_result_is_human_normalized_only_if_no_episode_was_capped():
    complete, capped = evaluation(reference=(0.0, 4.0)), evaluation(reference=(0.0, 4.0), capped=1)
    assert complete.statistics["human_normalized"] == 0.5
    assert "human     0.500" in complete.report()
    assert "human" not in capped.report()
    assert (
        MultiTaskEvalResult((complete, complete)).sentence
        == "6 episodes of 2 tasks, median human-normalized score 0.500"
    )
    assert MultiTaskEvalResult((complete, capped)).sentence == "6 episodes of 2 tasks, mean returns 2.00, 2.00"


def test_eval_json_holds_fields_and_statistics():
    row = json.loads(json.dumps(evaluation().as_dict()))
    assert row["returns"] == [1.0, 2.0, 3.0]
    assert row["episodes"] == 3
    assert row["mean"] == 2.0
    assert row["mean_low"] <= row["mean"] <= row["mean_high"]
    assert row["broken_share"] == 0.0
    assert evaluation(faults=1).as_dict()["broken_share"] == 0.25
    assert row["length"] == 20.0


def test_eval_of_a_single_episode_has_no_interval():
    one = evaluation(returns=(151.0,), lengths=(151,))
    assert one.report().count("151.00   no interval: a single episode") == 2
    row = json.loads(json.dumps(one.as_dict()))
    assert row["mean"] == row["iqm"] == 151.0
    assert not [name for name in row if name.endswith(("_low", "_high"))]


class FakeModel:
    """Two actions, the second four times as likely; the state counts the steps since `first`."""

    def __init__(self):
        import torch

        from sfactory.envs import ActionLeaf
        from sfactory.model.distributions import ActionDistribution

        self.torch = torch
        self.distribution = ActionDistribution({"action": ActionLeaf((), "int64", "discrete", (2,))})
        self.states = []

    def __call__(self, obs, state, first):
        torch, count = self.torch, len(first)
        state = torch.zeros(count, 1) if state is None else state
        state = torch.where(first[:, None], torch.zeros_like(state), state) + 1
        self.states.append(state[:, 0].tolist())
        params = torch.tensor([0.2, 0.8]).log().expand(count, 2)
        return SimpleNamespace(params=params, value=torch.zeros(count), state=state)


def act(policy, count, first=False):
    obs = {"obs": np.zeros((count, 1), np.float32)}
    return policy(obs, np.full(count, first))["action"]


def test_model_policy_is_greedy_or_samples():
    assert act(model_policy(FakeModel(), True, 0), 1000).tolist() == [1] * 1000
    share_of_ones = act(model_policy(FakeModel(), False, 0), 4000).mean()
    assert 0.77 < share_of_ones < 0.83


def test_model_policy_samples_the_same_actions_for_the_same_seed():
    a, b, c = (act(model_policy(FakeModel(), False, seed), 100).tolist() for seed in (1, 1, 2))
    assert a == b != c


def test_model_policy_resets_its_recurrent_state_for_new_environments():
    model = FakeModel()
    policy = model_policy(model, True, 0)
    for count in (2, 2, 3):
        act(policy, count)
    assert model.states == [[1, 1], [2, 2], [1, 1, 1]]


# -- the limit of an episode -------------------------------------------------------------------------------------


class LateGroup(FakeGroup):
    """Truncates after `limit` steps and reports the episode with the reset row, as ale-py's games of lives do."""

    num_envs = 1

    def step(self, action):
        step = super().step(action)
        late, self.late = getattr(self, "late", ()), step.episodes
        return step._replace(truncated=step.terminated, terminated=step.truncated, episodes=late)


@pytest.mark.parametrize(
    ("max_steps", "limit", "length", "capped"),
    [(0, 20, 20, 0), (20, 20, 20, 0), (30, 20, 20, 0), (10, 20, 10, 6), (0, None, 10_000, 6), (0, 5, 6, 6)],
    ids=["own", "the same", "beyond", "below", "no limit", "own, not kept"],
)
def test_play_task_counts_only_what_its_own_limit_cuts_as_capped(monkeypatch, max_steps, limit, length, capped):
    """Episodes that the environment's own limit ends are whole games, also where they are reported a row later."""
    spec = replace(make_spec("faults/count"), max_episode_steps=limit)
    ends = 20 if limit else 10**9

    def make(envs, first_env):
        group = LateGroup(envs, first_env, lambda number: ends)
        group.spec = spec
        return group

    monkeypatch.setattr(episodes, "watched_spec", lambda *arguments: spec)
    monkeypatch.setattr(episodes, "group_factory", lambda *arguments: make)
    policy = lambda obs, first: {"action": np.zeros(len(first), int)}  # noqa: E731
    _, _, played = episodes.play_task("faults/count", {}, policy, 6, 0, squash=False, max_steps=max_steps, num_envs=2)
    assert (played.lengths, played.capped) == ([length] * 6, capped)
    assert evaluation(reference=(0.0, 4.0), capped=0).statistics["human_normalized"] == 0.5


# -- another checkpoint, another environment -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run with a few checkpoints, of which the first has the highest training return."""
    run = trained(tmp_path_factory.mktemp("runs") / "run", "gymnasium/Acrobot-v1", stop={"env_steps": 200},
                  checkpoint={"exact": False, "every_seconds": 0.0, "keep": 9}, batch={"minibatches": 1})  # fmt: skip
    for path in checkpoint.candidates(run):
        state = json.loads((path / "state.json").read_text())
        state["training_return"] = -float(path.name)
        state.pop("episodes")  # as of an earlier version, whose return is always that of 100 episodes
        (path / "state.json").write_text(json.dumps(state))
        (path / "manifest.json").unlink()
        _write_manifest(path)
    return run


def test_chosen_checkpoint_is_the_newest_the_best_or_one_by_its_steps(several):
    found = checkpoint.candidates(several)
    assert len(found) > 2
    assert chosen_checkpoint(several, "newest") == chosen_checkpoint(found[0], "newest") == found[0]
    assert chosen_checkpoint(several, "best") == found[-1]
    assert chosen_checkpoint(several, str(int(found[1].name))) == found[1]
    known = f"checkpoint 7: no such checkpoint; there are newest, best, .*{int(found[0].name)}"
    with pytest.raises(CommandError, match=known):
        chosen_checkpoint(several, "7")
    with pytest.raises(CommandError, match="is a checkpoint already"):
        chosen_checkpoint(found[0], "best")


def test_load_policy_takes_the_checkpoint_that_evaluate_takes(several):
    found = checkpoint.candidates(several)
    steps = [int(path.name) for path in found]
    assert sfactory.load_policy(several).env_steps == steps[0]
    for which, expected in (("newest", steps[0]), ("best", steps[-1]), (steps[1], steps[1]), (str(steps[1]), steps[1])):
        assert sfactory.load_policy(several, checkpoint=which).env_steps == expected
    assert sfactory.load_policy(found[1], checkpoint="newest").env_steps == steps[1]


@pytest.mark.parametrize("play", [sfactory.evaluate, sfactory.load_policy])
def test_load_policy_refuses_the_checkpoints_that_evaluate_refuses(several, play):
    found = checkpoint.candidates(several)
    for which in ("7", 7, "latest", None):
        with pytest.raises(CommandError, match=f"^checkpoint {which}: no such checkpoint; there are newest, best, "):
            play(several, checkpoint=which)
    for which in ("best", int(found[0].name)):
        with pytest.raises(CommandError, match=f"^checkpoint {which}: .* is a checkpoint already; give the folder"):
            play(found[0], checkpoint=which)


def test_differences_name_the_value_in_a_table_of_tables():
    trained, config = (
        Config(env=Env("gymnasium/Road-v0", settings={"road": {"lanes": lanes, "length": 9}}, step_timeout=timeout))
        for lanes, timeout in ((3, 5.0), (4, 6.0))
    )
    assert differences(trained, config) == ("env.settings.road.lanes 4, trained with 3",)
    assert differences(config, config) == ()


def test_evaluation_takes_other_settings_of_the_environment_and_says_so(several):
    layer = {"env.settings.gravity": RawValue(20), "env.step_timeout": RawValue("5")}
    job = evaluation_of(checkpoint.candidates(several)[0], layer, episodes=2)
    assert job.changes == ("env.settings.gravity 20, trained with its default",)
    assert dict(job.config.env.settings) == {"gravity": 20}
    assert job.config.env.step_timeout == 5.0
    assert evaluation_of(checkpoint.candidates(several)[0], {}).changes == ()
    refusal = r"optim\.lr: eval plays with the settings of the run; it can change env\.settings"
    with pytest.raises(CommandError, match=refusal):
        evaluation_of(checkpoint.candidates(several)[0], {"optim.lr": RawValue("1")})


@pytest.mark.parametrize(("world_size", "ranks"), [(None, 1), (1, 1), (3, 3)])
def test_evaluation_builds_environments_with_numbers_above_those_of_all_ranks(several, monkeypatch, world_size, ranks):
    path = checkpoint.candidates(several)[0]
    job, state, built = evaluation_of(path, {}, episodes=1), checkpoint.read_state(path), []
    state.pop("world_size")
    state |= {} if world_size is None else {"world_size": world_size}
    monkeypatch.setattr(checkpoint, "read_state", lambda _: state)
    make_group = episodes.make_group
    monkeypatch.setattr(
        episodes, "make_group", lambda *given, **o: (built.append(o["env_index"]), make_group(*given, **o))[1]
    )
    job.run()
    assert set(built) == {MAX_ENVS + ranks * job.config.training_envs}


def test_evaluation_prints_the_difference(several):
    changes = ("env.settings.gravity 20, trained with its default",)
    assert "changed   env.settings.gravity 20, trained with its default" in evaluation(changes=changes).report()
    assert evaluation(changes=changes).as_dict()["changes"] == changes
