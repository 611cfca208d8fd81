"""Names of settings in other programs: every answer is written out here, not read from the table."""

import re

import pytest

import sfactory
from sfactory.config import known_names
from sfactory.config.flags import split_flags
from sfactory.config.known_names import KNOWN, PROGRAMS, answer, setting_of
from sfactory.config.parsing import build, check_name, field_types, flag_name
from sfactory.config.presets import target_layers
from sfactory.config.short_forms import SHORT_FORMS
from sfactory.errors import SettingError

FLAGS = {
    # Sample Factory
    "--env": "here TARGET (the environment is the first word, as in sfactory train classic/cartpole)",
    "--experiment": "here run.dir (the folder of the run; --name NAME is runs/NAME)",
    "--train_dir": "here run.dir (",
    "--restart_behavior": "no counterpart here: a new run refuses an existing folder; sfactory resume",
    "--async_rl": "here sampling.slots-per-group (1: synchronous; 2 or more: sampling overlaps learning)",
    "--serial_mode": "here run.mode lockstep (",
    "--batched_sampling": "no counterpart here: the environments of a group always step together",
    "--num_batches_to_accumulate": "here sampling.slots-per-group (",
    "--worker_num_splits": "here sampling.groups-per-sampler",
    "--policy_workers_per_policy": "here run.inference-workers",
    "--max_policy_lag": "no counterpart here: no data is discarded for its age",
    "--num_workers": "here sampling.num-samplers (processes; 0: by cores)",
    "--num_envs_per_worker": "here sampling.envs-per-group (those of one group; a process has",
    "--batch_size": "here batch.minibatches (the number of minibatches, not their rows",
    "--num_batches_per_epoch": "here batch.minibatches (batch.slots is the size of an update)",
    "--num_epochs": "here batch.epochs",
    "--rollout": "here sampling.rollout-length",
    "--recurrence": "here sampling.rollout-length (recurrent policies learn from whole rollouts)",
    "--shuffle_minibatches": "here batch.shuffle (",
    "--value_bootstrap": "no counterpart here: episodes that a time limit ends always bootstrap",
    "--normalize_returns": "here normalize.value-targets",
    "--normalize_input": "here normalize.obs",
    "--reward_scale": "here env.reward-scale",
    "--reward_clip": "here env.reward-clip (",
    "--exploration_loss_coeff": "here loss.entropy-coef",
    "--value_loss_coeff": "here loss.value-coef (",
    "--kl_loss_coeff": "here surrogate.kl-coef (with surrogate.objective decoupled_kl",
    "--ppo_clip_ratio": "here surrogate.clip (from 1 - clip to 1 + clip; there from 1 / (1 + clip))",
    "--ppo_clip_value": "here loss.value-clip (",
    "--with_vtrace": "here trace.estimator (gae, vtrace and others)",
    "--vtrace_rho": "here trace.rho-bar",
    "--vtrace_c": "here trace.c-bar",
    "--adam_eps": "here optim.eps",
    "--adam_beta1": "here optim.beta1",
    "--lr_schedule": "here optim.schedule (",
    "--lr_schedule_kl_threshold": "here optim.kl-target (",
    "--lr_adaptive_max": "here optim.lr-max (",
    "--optimizer": "no counterpart here: the optimizer is Adam",
    "--decorrelate_experience_max_seconds": "no counterpart here: rollouts of all environments start",
    "--train_for_env_steps": "here stop.env-steps (decisions; Sample Factory counts frames: divide by its ",
    "--train_for_seconds": "here stop.seconds (",
    "--save_every_sec": "here checkpoint.every-seconds (",
    "--keep_checkpoints": "here checkpoint.keep (",
    "--encoder_mlp_layers": "here model.hidden (",
    "--encoder_conv_architecture": "here model.encoder (",
    "--use_rnn": "here model.core (none, gru, lstm)",
    "--rnn_size": "here model.core-size",
    "--nonlinearity": "here model.activation (relu or tanh)",
    "--actor_critic_share_weights": "here model.separate (the opposite",
    "--initial_stddev": "here model.log-std-init (the logarithm of it)",
    "--adaptive_stddev": "no counterpart here: noise does not depend on the state",
    "--env_frameskip": "no counterpart here: atari/ always skips 4 frames",
    "--env_framestack": "here env.wrappers FrameStackObservation (",
    "--with_wandb": "here log.wandb",
    "--with_pbt": "here sfactory pbt (",
    "--pbt_period_env_steps": "here sfactory pbt TARGET --period 5M",
    # CleanRL
    "--env-id": "here TARGET (",
    "--exp-name": "here run.dir (",
    "--torch-deterministic": "here run.mode lockstep (",
    "--cuda": "here run.device (",
    "--no-cuda": "here run.device (",
    "--track": "here log.wandb",
    "--capture-video": "here eval.video (with eval.every; after training: sfactory eval runs/NAME --video out.mp4)",
    "--save-model": "no counterpart here: checkpoints are always saved",
    "--total-timesteps": "here stop.env-steps",
    "--learning-rate": "here optim.lr",
    "--num-envs": "here sampling.envs-per-group (there all environments; here those of one group",
    "--num-steps": "here sampling.rollout-length",
    "--anneal-lr": "here optim.schedule linear (to 0 at stop.env-steps)",
    "--no-anneal-lr": "here optim.schedule linear (",
    "--gamma": "here trace.gamma",
    "--gae-lambda": "here trace.trace-lambda",
    "--num-minibatches": "here batch.minibatches",
    "--update-epochs": "here batch.epochs",
    "--norm-adv": "here normalize.advantage (over each update, not each minibatch)",
    "--clip-coef": "here surrogate.clip",
    "--clip-vloss": "here loss.value-clip (the distance itself; there clip-coef)",
    "--ent-coef": "here loss.entropy-coef",
    "--vf-coef": "here loss.value-coef (weight of the squared error; CleanRL and PufferLib take half of the error)",
    "--max-grad-norm": "here optim.max-grad-norm",
    "--target-kl": "no counterpart here: an update never stops early",
    "--buffer-size": "no counterpart here: there is no buffer of old transitions",
    # Stable-Baselines3
    "--n_steps": "here sampling.rollout-length",
    "--n-steps": "here sampling.rollout-length",
    "--n_envs": "here sampling.envs-per-group (",
    "--n_epochs": "here batch.epochs",
    "--clip_range": "here surrogate.clip",
    "--clip_range_vf": "here loss.value-clip (",
    "--policy": "here model.encoder (MlpPolicy: mlp, CnnPolicy: nature; proximal.policy is the center",
    "--policy_kwargs": "here the section model (",
    "--net_arch": "here model.hidden (",
    "--use_sde": "no counterpart here: noise does not depend on the state",
    "--tensorboard_log": "here run.dir (TensorBoard files are in the folder of the run)",
    "--norm_reward": "here normalize.reward",
    "--eval-freq": "here eval.every (in steps)",
    "--n_eval_episodes": "here eval.episodes",
    "--trained-agent": "here run.init-from (",
    "--verbose": "here log.quiet",
    # RLlib
    "--num_env_runners": "here sampling.num-samplers (",
    "--num_envs_per_env_runner": "here sampling.envs-per-group (those of one group",
    "--rollout_fragment_length": "here sampling.rollout-length",
    "--train_batch_size_per_learner": "here batch.slots (",
    "--sgd_minibatch_size": "here batch.minibatches (the number of minibatches, not their rows",
    "--num_sgd_iter": "here batch.epochs",
    "--lambda_": "here trace.trace-lambda",
    "--clip_param": "here surrogate.clip",
    "--vf_clip_param": "here loss.value-clip (bounds the change of the value; there it bounds the squared error)",
    "--entropy_coeff": "here loss.entropy-coef",
    "--grad_clip": "here optim.max-grad-norm",
    "--kl_target": "no counterpart here: surrogate.kl-coef is constant",
    "--model.fcnet_hiddens": "here model.hidden (",
    "--model.use_lstm": "here model.core (",
    "--training.lr": "here optim.lr",
    "--env_runners.num_env_runners": "here sampling.num-samplers (",
    "--evaluation_interval": "here eval.every (",
    # PufferLib
    "--train.total-timesteps": "here stop.env-steps",
    "--train.learning-rate": "here optim.lr",
    "--train.bptt-horizon": "here sampling.rollout-length",
    "--train.minibatch-size": "here batch.minibatches (the number",
    "--train.batch-size": "here batch.slots (",
    "--vec.batch-size": "no counterpart here: the environments of a group always step together",
    "--vec.num-envs": "here sampling.envs-per-group (",
    "--vec.num-workers": "here sampling.num-samplers (",
    "--vec.backend": "here run.mode (",
    "--train.vf-clip-coef": "here loss.value-clip (",
    "--train.vtrace-rho-clip": "here trace.rho-bar",
    "--train.anneal-lr": "here optim.schedule linear (to 0 at stop.env-steps, in a straight line; there a cosine)",
    "--train.prio-alpha": "no counterpart here: all lanes have the same weight",
    "--rnn.hidden-size": "here model.core-size",
}  # fmt: skip


@pytest.mark.parametrize(("flag", "expected"), FLAGS.items())
def test_a_foreign_flag_is_answered_with_the_name_here(flag, expected):
    with pytest.raises(SettingError) as caught:
        split_flags([flag, "1"], {})
    start = f"{flag.lstrip('-')}: no such setting; "
    assert str(caught.value).startswith(start + expected)
    complete = expected.endswith(")") or " (" not in str(caught.value)
    if complete and not expected.startswith("no counterpart"):
        assert str(caught.value) == start + expected


def test_sixty_foreign_flags_are_tested():
    assert len(FLAGS) >= 60


@pytest.mark.parametrize("typed", ["TOTAL_TIMESTEPS", "total-timesteps", "totalTimesteps", "Total_Timesteps"])
def test_answer_ignores_case_dashes_and_underscores(typed):
    assert answer(typed) == "here stop.env-steps"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optim.learning_rate", "here optim.lr"),  # a section of ours
        ("run.total_timesteps", "here stop.env-steps"),
        ("eval.num_workers", ""),  # not the processes of training
        ("eval.n_eval_episodes", "here eval.episodes"),
        ("checkpoint.seed", ""),
        ("sampling", ""),
        ("no-such-thing", ""),
        ("", ""),
    ],
)
def test_answer_with_a_section_and_without_a_row(typed, expected):
    assert answer(typed) == expected


@pytest.mark.parametrize(
    "name",
    ["n_step", "weight_decay", "rpo-alpha", "target-network-frequency", "tau", "exploration-fraction", "log_to_file",
     "heartbeat_interval", "end-e", "evaluation_config", "compile_mode", "callback", "momentum", "alpha", "storage"],
)  # fmt: skip
def test_check_name_suggests_nothing_that_means_something_else(name):
    with pytest.raises(SettingError) as caught:
        check_name(name.replace("-", "_"), name)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optim.lrr", "optim.lr"),
        ("rollout-lenght", "sampling.rollout-length"),
        ("stop.env-step", "stop.env-steps"),
        ("minibatchs", "batch.minibatches"),
        ("sampling.num-sampler", "sampling.num-samplers"),
    ],
)
def test_check_name_still_suggests_a_near_name(typed, expected):
    with pytest.raises(SettingError, match=rf"{typed}: no such setting; did you mean {expected}\?"):
        check_name(typed.replace("-", "_"), typed)


# -- the table itself


def test_every_setting_in_the_table_exists():
    settings = {flag_name(name) for name in field_types()}
    named = [word for known in KNOWN for word in re.findall(r"\b[a-z]+\.[a-z][a-z0-9-]+", f"{known.here} {known.note}")]
    assert len(named) > 60
    known = settings | {"env.settings", "env.settings.frameskip", "out.mp4"}
    assert [name for name in named if name not in known and f"--{name}" not in known] == []


def test_every_row_has_a_name_and_says_something():
    for known in KNOWN:
        assert any(known.names(program) for program in PROGRAMS), known
        assert known.here or known.note


def test_no_name_has_two_answers():
    rows = {}
    for known in KNOWN:
        for name in {known_names._key(name) for program in PROGRAMS for name in known.names(program)}:
            assert name not in rows, f"{name}: {rows.get(name)} and {known}"
            rows[name] = known


def test_no_foreign_name_is_a_setting_or_section_of_ours():
    settings = {known_names._key(name) for name in field_types()}
    for known in KNOWN:
        for name in (name for program in PROGRAMS for name in known.names(program)):
            assert known_names._key(name) not in settings, name


# -- files and Python


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optim]\nlearning_rate = 1", "my.toml: optim.learning-rate: no such setting; here optim.lr"),
        ("[training]\nn-steps = 1", "my.toml: training.n-steps: no such setting; here sampling.rollout-length"),
        ("total_timesteps = 1000",
         "my.toml: total_timesteps: settings belong in sections; here stop.env-steps: write [stop] with env_steps "
         "below it"),
        ("lr = 1", "my.toml: lr: settings belong in sections; here optim.lr: write [optim] with lr below it"),
        ("target_kl = 1", "my.toml: target_kl: settings belong in sections; no counterpart here: an update never"),
        ("color = 1", "my.toml: color: settings belong in sections; write [section] above it"),
    ],
)  # fmt: skip
def test_a_foreign_key_of_a_file_is_answered_with_the_name_here(tmp_path, text, expected):
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(SettingError) as caught:
        build(*target_layers("classic/cartpole", [path]))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"total_timesteps": 1000},
         "total_timesteps: settings belong in sections; here stop.env-steps: write stop={'env_steps': 1000}"),
        ({"seed": 3}, "seed: settings belong in sections; here run.seed: write run={'seed': 3}"),
        ({"target_kl": 0.1}, "target_kl: settings belong in sections; no counterpart here: an update never"),
        ({"env": "CartPole-v1"}, "env: settings belong in sections; here TARGET ("),
        ({"optim": {"learning_rate": 1}}, "optim.learning-rate: no such setting; here optim.lr"),
        ({"model": {"fcnet_hiddens": [64]}}, "model.fcnet-hiddens: no such setting; here model.hidden ("),
        ({"color": 3}, "color: expected a dict of settings, as optim={'lr': 1e-3}, got 3"),
    ],
)  # fmt: skip
def test_a_foreign_keyword_in_python_is_answered_with_the_name_here(keywords, expected):
    with pytest.raises(ValueError) as caught:
        sfactory.make_config("classic/cartpole", **keywords)
    assert str(caught.value).startswith(expected)


def test_setting_of_knows_short_forms_and_foreign_names():
    assert {short: setting_of(short) for short in ("steps", "lr", "name")} == {
        "steps": "stop.env-steps", "lr": "optim.lr", "name": "run.dir",
    }  # fmt: skip
    assert setting_of("n_epochs") == "batch.epochs"
    assert setting_of("anneal_lr") == setting_of("target_kl") == setting_of("color") == ""
    assert set(SHORT_FORMS.values()) <= set(field_types())
