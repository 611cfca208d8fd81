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
    "--num_envs_per_worker": "here sampling.envs-per-group (there those of a process; here",
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
    "--continuous_tanh_scale": "here model.squash (true or false: tanh of the sample; there the scale of a tanh of the "
    "mean)",
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
    "--n-iteration": "here ppg.policy-updates (with algorithm.name ppg)",
    "--e-policy": "here batch.epochs (with algorithm.name ppg)",
    "--beta-clone": "here ppg.clone-coef (with algorithm.name ppg)",
    "--adv-norm-fullbatch": "here normalize.advantage (always over each update)",
    "--gae": "here trace.estimator (gae, vtrace and others)",
    "--start-e": "here pqn.epsilon-start (with algorithm.name pqn)",
    "--end-e": "here pqn.epsilon-end (with algorithm.name pqn)",
    "--exploration-fraction": "here pqn.epsilon-fraction (with algorithm.name pqn)",
    "--q-lambda": "here trace.trace-lambda (with algorithm.name pqn)",
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
    "--verbose": "here log.quiet (the opposite: true shows no progress)",
    "--progress_bar": "here log.quiet (the opposite: true shows no progress)",
    "--clip_reward": "here env.reward-clip (the bound itself, 1 where true takes the sign there; returns are reported "
    "unclipped)",
    "--conf-file": "here --config FILE (settings from a file)",
    "--exploration_final_eps": "here pqn.epsilon-end (with algorithm.name pqn)",
    "--optimizer_kwargs": "here optim.eps (beside optim.beta1 and optim.beta2)",
    "--normalize": "here normalize.obs (and normalize.reward)",
    "--squash_output": "here model.squash (tanh of the sample, scaled to the bounds)",
    "--stats_window_size": "no counterpart here: returns are means of the last 100 episodes",
    "--use_rms_prop": "no counterpart here: the optimizer is Adam",
    # RLlib
    "--num_env_runners": "here sampling.num-samplers (",
    "--num_envs_per_env_runner": "here sampling.envs-per-group (there those of a process",
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
    "--use_kl_loss": "here surrogate.kl-coef (with surrogate.objective decoupled_kl",
    "--clip_rewards": "here env.reward-clip (the bound itself, 1 where true takes the sign there;",
    "--model.free_log_std": "no counterpart here: noise does not depend on the state",
    "--checkpoint-freq": "here checkpoint.every-seconds (in seconds)",
    "--model.fcnet_hiddens": "here model.hidden (",
    "--model.use_lstm": "here model.core (",
    "--training.lr": "here optim.lr",
    "--env_runners.num_env_runners": "here sampling.num-samplers (",
    "--evaluation_interval": "here eval.every (",
    "--entropy_coeff_schedule": "here loss.entropy-final (at the end, on a straight line from loss.entropy-coef)",
    "--beta": "no counterpart here: there is no learning from recorded data",
    "--model": "here the section model (one flag for each setting)",
    "--model_size": "no counterpart here: there is no model of the environment",
    "--num-samples": "here sfactory sweep TARGET --seeds 0..4 (the number of runs)",
    "--wandb-key": "no counterpart here: wandb reads it from the environment variable WANDB_API_KEY",
    "--wandb-run-name": "here log.wandb-name",
    # Weights & Biases in several programs
    "--wandb_project": "here log.wandb-project",
    "--wandb-project-name": "here log.wandb-project",
    "--wandb_group": "here log.wandb-group",
    "--wandb_tags": "here log.wandb-tags (with commas)",
    "--wandb_user": "no counterpart here: wandb reads it from the environment variable WANDB_ENTITY",
    "--wandb-entity": "no counterpart here: wandb reads it from the environment variable WANDB_ENTITY",
    "--wandb_job_type": "no counterpart here: wandb reads it from the environment variable WANDB_JOB_TYPE",
    # PufferLib
    "--train.total-timesteps": "here stop.env-steps",
    "--train.learning-rate": "here optim.lr",
    "--train.bptt-horizon": "here sampling.rollout-length",
    "--train.horizon": "here sampling.rollout-length",
    "--train.replay-ratio": "here batch.epochs (passes over an update, a whole number; replay.ratio is something else)",
    "--vec.total-agents": "here sampling.envs-per-group (there the agents of all environments;",
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
    "--train.name": "no counterpart here: PufferLib does not read it; here --name NAME is the folder",
    "--train.project": "no counterpart here: PufferLib does not read it",
    "--neptune": "no counterpart here: metrics go to TensorBoard and Weights & Biases (log.wandb), not to Neptune",
    "--tag": "here log.wandb-tags (with commas)",
    "--rnn.hidden-size": "here model.core-size",
    # Baselines, Spinning Up, pytorch-a2c-ppo-acktr, TorchBeast, Tianshou, TorchRL, skrl, rl_games, Brax
    "--num_timesteps": "here stop.env-steps",
    "--num-env-steps": "here stop.env-steps",
    "--total_frames": "here stop.env-steps (steps of the policy; stop.frames counts frames)",
    "--num-updates": "no counterpart here: the length of a run is not counted in updates",
    "--max_iterations": "no counterpart here: the length of a run is not counted in updates",
    "--num-episodes": "no counterpart here: the length of a run is not counted in episodes",
    "--episodes": "no counterpart here: the length of a run is not counted in episodes",
    "--task": "here TARGET (",
    "--max_ep_len": "here env.settings.max_episode_steps (of gymnasium/ environments)",
    "--gpu": "here run.device (",
    "--logdir": "here run.dir (the folder of the run; --name NAME is runs/NAME)",
    "--resume": "here sfactory resume runs/NAME (run.init-from starts a new run with the weights of another one)",
    "--load_path": "here sfactory resume runs/NAME (",
    "--num_actors": "here sampling.num-samplers (processes, each with groups of sampling.envs-per-group environments; "
    "in rl_games the number of all environments)",
    "--num-processes": "here sampling.num-samplers (",
    "--num_env": "here sampling.envs-per-group (there all environments;",
    "--unroll_length": "here sampling.rollout-length",
    "--nminibatches": "here batch.minibatches",
    "--noptepochs": "here batch.epochs",
    "--repeat-per-collect": "here batch.epochs",
    "--discounting": "here trace.gamma",
    "--lam": "here trace.trace-lambda",
    "--eps-clip": "here surrogate.clip",
    "--clip_ratio": "here surrogate.clip",
    "--baseline_cost": "here loss.value-coef (weight of the mean squared error;",
    "--entropy_cost": "here loss.entropy-coef (of the mean over the batch; TorchBeast takes the sum)",
    "--rew-norm": "here normalize.value-targets (there returns are only divided by their deviation)",
    "--return_scaling": "here normalize.value-targets (",
    "--epochs": "here batch.epochs (passes over an update; in Spinning Up and Tianshou the length of a run,",
    "--epoch": "here batch.epochs (passes over an update; in Spinning Up and Tianshou the length of a run,",
    "--frames": "here stop.env-steps (there steps of all environments; stop.frames counts frames,",
    "--use-linear-lr-decay": "here optim.schedule linear (to 0 at stop.env-steps)",
    "--grad_norm_clipping": "here optim.max-grad-norm",
    "--step-per-collect": "here sampling.rollout-length (there the steps of all environments together: divide by their",
    "--frames_per_batch": "here sampling.rollout-length (there the steps of all environments together: divide by their",
    "--steps-per-epoch": "no counterpart here: the length of a run is not counted in epochs; stop.env-steps",
    "--max_epoch": "no counterpart here: the length of a run is not counted in updates; stop.env-steps counts steps",
    "--episode-per-collect": "no counterpart here: rollouts have a fixed length",
    "--seq_length": "here sampling.rollout-length (recurrent policies learn from whole rollouts)",
    "--grad_norm": "here optim.max-grad-norm",
    "--kl_threshold": "here optim.kl-target (with optim.schedule kl_adaptive)",
    "--clip_value": "here loss.value-clip (the distance itself; there e_clip)",
    "--score_to_win": "here stop.target-return (mean of the last 100 episodes)",
    "--share_features_extractor": "here model.separate (the opposite: true has two networks)",
    "--n-trials": "no counterpart here: sfactory sweep tries all values of a list; docs/python.md has a search with",
    "--hidden-sizes": "here model.hidden (widths, as 256,256)",
    "--network": "here model.encoder (",
    "--recurrent-policy": "here model.core (none, gru, lstm)",
    "--save-interval": "here checkpoint.every-seconds (in seconds)",
    "--eval-interval": "here eval.every (in steps)",
    "--render": "here sfactory eval runs/NAME --video out.mp4 (records episodes; training draws nothing)",
    "--dry-run": "here --print-config (prints the settings and starts nothing)",
    "--config-file": "here --config FILE (settings from a file)",
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


WITHOUT_COUNTERPART = {
    "Sample Factory": "normalize_input_keys actor_worker_gpus set_workers_cpu_affinity force_envs_single_thread "
    "default_niceness log_to_file flush_summaries_interval summaries_use_frameskip heartbeat_interval "
    "heartbeat_reporting_interval save_best_metric save_best_after benchmark decoder_mlp_layers use_env_info_cache "
    "env_gpu_actions env_gpu_observations pixel_format use_record_episode_statistics eval_env_frameskip no_render "
    "video_frames video_name max_num_frames push_to_hub hf_repository policy_index train_script enjoy_script "
    "pbt_mix_policies_in_one_env pbt_optimize_gamma pbt_target_objective pbt_perturb_min pbt_perturb_max",
    "CleanRL": "upload-model hf-entity rpo-alpha target-network-frequency "
    "train-frequency n-atoms v-min v-max policy-lr q-lr policy-frequency noise-clip exploration-noise autotune "
    "int-coef ext-coef int-gamma update-proportion num-iterations-obs-norm-init v-value num-aux-rollouts "
    "n-aux-grad-accum backend device-ids actor-device-ids learner-device-ids num-actor-threads "
    "trxl-num-layers trxl-memory-length reconstruction-coef",
    "PufferLib": "package max-suggestion-cost load-id render-mode save-frames gif-path fps max-runs local-rank "
    "vec.zero-copy vec.overwork vec.num-threads train.cpu-offload train.max-minibatch-size train.compile-mode "
    "train.compile-fullgraph rnn.input-size sweep.method sweep.metric sweep.goal sweep.downsample",
    "RLlib": "placement_strategy custom_resources_per_worker local_gpu_idx eager_tracing render_env "
    "disable_env_checking sample_timeout_s episode_lookback_horizon compress_observations explore "
    "preprocessor_pref policy_mapping_fn policies_to_train count_steps_by keep_per_episode_custom_metrics "
    "min_time_s_per_iteration log_sys_usage fake_sampler worker_health_probe_timeout_s grad_clip_by "
    "num_gpu_loader_threads minibatch_buffer_size broadcast_interval target_worker_clipping simple_queue_size "
    "evaluation_parallel_to_training evaluation_duration_unit off_policy_estimation_methods tau momentum "
    "model.conv_filters model.use_attention model.zero_mean stop-timesteps-total checkpoint-at-end as-test",
    "a phase of ours": "eval.seed eval.device selfplay.seed selfplay.enabled checkpoint.seed log.dir",
}
"""Settings that do something else than every setting here, so that any suggestion would be wrong."""


@pytest.mark.parametrize(
    ("program", "name"), [(program, name) for program, names in WITHOUT_COUNTERPART.items() for name in names.split()]
)
def test_a_foreign_flag_without_a_counterpart_gets_no_suggestion(program, name):
    with pytest.raises(SettingError) as caught:
        split_flags([f"--{name}", "1"], {})
    assert str(caught.value) == f"{name}: no such setting"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optim.beta", "did you mean optim.beta"),  # not RLlib's beta
        ("model.size", "did you mean model.core-size?"),  # nor its model_size
        ("sampling.num-samples", "did you mean sampling.num-samplers?"),
        ("surrogate.policy", "did you mean proximal.policy?"),
        ("log.wandb-projct", "did you mean log.wandb-project?"),
        ("surrogate.clipp", "did you mean surrogate.clip?"),
        ("run.name", "did you mean run.dir, or --name?"),  # and not env.name
        ("stop.steps", "did you mean stop.env-steps, or --steps?"),
    ],
)
def test_a_setting_of_ours_is_suggested_where_the_name_of_another_program_is_near_it(typed, expected):
    with pytest.raises(SettingError) as caught:
        split_flags([f"--{typed}", "1"], {})
    assert f"no such setting; {expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("checkpoint", "a section, not a setting; its settings are checkpoint.every-seconds, checkpoint.keep, "),
        ("game", "no such setting; here TARGET (the environment is the first word"),
        (
            "mode",
            "no such setting; here the command (the first word: train, eval, sweep; run.mode is async or lockstep)",
        ),
        ("load-model", "no such setting; here sfactory resume runs/NAME ("),
        ("num-layers", "no such setting; here model.hidden (one width for each layer, as 256,256)"),
        ("sticky-actions", "no such setting; here env.protocol machado (of atari/: sticky actions of 0.25)"),
    ],
)
def test_a_short_word_is_answered_with_what_it_means_elsewhere_and_not_with_a_near_setting(typed, expected):
    """They were answered with checkpoint.keep, selfplay.games and run.mode."""
    with pytest.raises(SettingError) as caught:
        split_flags([f"--{typed}", "1"], {})
    assert str(caught.value).startswith(f"{typed}: {expected}")
    assert "did you mean" not in str(caught.value)


def test_names_that_count_only_as_they_are_written_are_not_found_by_their_last_part():
    rows = [known for known in KNOWN if known.exact]
    assert len(rows) > 6
    for known in rows:
        for name in (name for program in PROGRAMS for name in known.names(program)):
            assert answer(name) == known.answer
            assert answer(f"somewhere.{name.rpartition('.')[2]}") != known.answer, name


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
    ["n_step", "weight_decay", "rpo-alpha", "target-network-frequency", "tau", "log_to_file",
     "heartbeat_interval", "evaluation_config", "compile_mode", "callback", "momentum", "alpha", "storage"],
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
    known = settings | {"env.settings", "env.settings.frameskip", "out.mp4", "python.md"}
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
        ("save_freq = 1", "my.toml: save_freq: settings belong in sections; here checkpoint.every-seconds (in sec"),
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
        ({"verbose": 1}, "verbose: settings belong in sections; here log.quiet (the opposite: true shows no progress): "
         "write log={'quiet': ...}"),
        ({"batch_size": 256}, "batch_size: settings belong in sections; here batch.minibatches (the number of"),
        ({"envs_per_group": 4}, "envs_per_group: settings belong in sections; here sampling.envs-per-group: write "
         "sampling={'envs_per_group': 4}"),
        ({"optim.lr": 0.1}, "optim.lr: settings belong in sections; here optim.lr: write optim={'lr': 0.1}"),
        ({"callback": print}, "callback: no such argument; did you mean callbacks?"),
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
