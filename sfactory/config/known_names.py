"""Names of settings in other programs, and what the same thing is called here.

Answers to unknown flags, keys of files and keywords in Python are read from this table, and so is the page
docs/coming-from.md. The names were checked against the argument parsers and the classes of the programs. Upper and
lower case, dashes and underscores make no difference. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from sfactory.config.short_forms import SHORT_FORMS

PROGRAMS = {
    "sf": "Sample Factory",
    "cleanrl": "CleanRL",
    "sb3": "Stable-Baselines3",
    "rllib": "RLlib",
    "puffer": "PufferLib",
    "other": "other programs",
}
"""Field of `Known` -> name of the program. Those of Stable-Baselines3 include its zoo's command line. Others are OpenAI
Baselines, Spinning Up, pytorch-a2c-ppo-acktr, rl-starter-files, TorchBeast, Tianshou, TorchRL, skrl, rl_games, Brax,
and what people try first."""

_SETTING = re.compile(r"[a-z]+\.[a-z][a-z0-9-]*")

EVAL = "sfactory eval runs/NAME"


@dataclass(frozen=True)
class Known:
    """One thing that can be set: its name here, and its names in other programs, separated by blanks.

    here: settings or a command; empty if there is no counterpart.
    note: what differs in meaning or unit; without a counterpart, why there is none.
    exact: the names count only as they are written there, with their section if they have one. Their last part means
        something else in other sections, or is near a name of ours.
    """

    here: str
    note: str = ""
    sf: str = ""
    cleanrl: str = ""
    sb3: str = ""
    rllib: str = ""
    puffer: str = ""
    other: str = ""
    exact: bool = False

    def names(self, program: str) -> tuple[str, ...]:
        """The names in one program, as they are written there."""
        return tuple(getattr(self, program).split())

    @property
    def answer(self) -> str:
        """What an error message says about it."""
        if not self.here:
            return f"no counterpart here: {self.note}"
        return f"here {self.here}" + (f" ({self.note})" if self.note else "")


_ROWS_NOTE = "the number of minibatches, not their rows: rows of an update / rows of a minibatch"
_VALUE_NOTE = "weight of the squared error; CleanRL and PufferLib take half of the error"

KNOWN = (
    # -- how long, where, on what
    Known("stop.env-steps", cleanrl="total-timesteps", sb3="total_timesteps n-timesteps",
          rllib="timesteps_total num_env_steps_sampled_lifetime stop-timesteps", puffer="train.total_timesteps",
          other="num_timesteps num-env-steps total_steps max-steps max-timesteps timesteps"),
    Known("stop.env-steps", "decisions; Sample Factory counts frames: divide by its env_frameskip",
          sf="train_for_env_steps"),
    Known("stop.env-steps", "steps of the policy; stop.frames counts frames", other="total_frames num-frames"),
    Known("stop.env-steps", "there steps of all environments; stop.frames counts frames, skipped ones as well",
          other="frames", exact=True),
    Known("stop.seconds", "seconds of training", sf="train_for_seconds", rllib="time_total_s"),
    Known("stop.target-return", "mean of the last 100 episodes",
          rllib="episode_reward_mean episode_return_mean stop-reward", other="score_to_win"),
    Known("", "the length of a run is not counted in updates; stop.env-steps counts steps",
          cleanrl="num-iterations", rllib="training_iteration stop-iters",
          other="num-updates max_iterations iterations max_epochs max_epoch"),
    Known("", "the length of a run is not counted in epochs; stop.env-steps counts steps, and log.every-seconds says "
          "how often a row of metrics is written", other="steps-per-epoch step_per_epoch epoch_num_steps"),
    Known("", "the length of a run is not counted in episodes; stop.env-steps counts steps",
          other="episodes num-episodes max-episodes n-episodes", exact=True),
    Known("TARGET", "the environment is the first word, as in sfactory train classic/cartpole", sf="env",
          cleanrl="env-id gym-id", sb3="env", rllib="env", puffer="env_name", other="task game"),
    Known("env.settings.KEY", "one flag for each argument of the environment", sb3="env-kwargs",
          rllib="env_config"),
    Known("env.wrappers", sb3="env_wrapper wrapper_class"),
    Known("env.settings.max_episode_steps", "of gymnasium/ environments",
          other="max-episode-steps max_ep_len episode_length"),
    Known("", "atari/ always skips 4 frames; elsewhere it is an argument of the environment: env.settings.frameskip",
          sf="env_frameskip", puffer="env.frameskip"),
    Known("env.protocol machado", "of atari/: sticky actions of 0.25", other="sticky-actions"),
    Known("env.wrappers FrameStackObservation", "atari/ stacks 4 frames by itself", sf="env_framestack",
          sb3="frame_stack", rllib="model.framestack", puffer="env.framestack"),
    Known("run.seed", sf="seed", cleanrl="seed", sb3="seed", rllib="seed", puffer="train.seed vec.seed"),
    Known("run.device", "auto, cpu, cuda, cuda:N", sf="device", cleanrl="cuda", sb3="device",
          rllib="num_gpus num_gpus_per_learner", puffer="train.device", other="gpu use-gpu disable_cuda"),
    Known("torchrun", "one learner per GPU: torchrun --nproc-per-node N -m sfactory train TARGET",
          rllib="num_learners"),
    Known("run.mode lockstep", "deterministic to the last bit, in one process", sf="serial_mode",
          cleanrl="torch-deterministic", puffer="train.torch_deterministic", other="cuda-deterministic"),
    Known("the command", "the first word: train, eval, sweep; run.mode is async or lockstep", puffer="mode",
          exact=True),
    Known("run.mode", "async: processes; lockstep: one process", sb3="vec-env vec_env_cls", puffer="vec.backend",
          exact=True),
    Known("run.dir", "the folder of the run; --name NAME is runs/NAME", sf="experiment train_dir",
          cleanrl="exp-name", sb3="log-folder", puffer="train.data_dir",
          other="logdir savedir save-dir save_path out-dir output-dir xpid"),
    Known("--name", "the folder of the run is runs/NAME", other="run-name"),
    Known("run.dir", "TensorBoard files are in the folder of the run", sb3="tensorboard_log tb_log_name"),
    Known("", "a new run refuses an existing folder; sfactory resume runs/NAME continues one",
          sf="restart_behavior", sb3="reset_num_timesteps"),
    Known("run.init-from", "starts with the weights of another run; sfactory resume continues a run",
          sb3="trained-agent", puffer="load_model_path"),
    Known("sfactory resume runs/NAME", "run.init-from starts a new run with the weights of another one",
          other="resume restore resume-path load_path load-checkpoint load-model checkpoint-path", exact=True),
    Known("run.precision", "auto, fp32, bf16", puffer="train.precision"),
    Known("run.kernels", "native needs no compilation by torch", puffer="train.compile", rllib="torch_compile_learner"),
    Known("run.learner-threads", sb3="num-threads", other="num_learner_threads", exact=True),
    Known("", "torch is the only framework", rllib="framework"),
    # -- sampling
    Known("sampling.num-samplers", "processes; 0: by cores", sf="num_workers",
          rllib="num_env_runners num_rollout_workers num_workers", puffer="vec.num_workers"),
    Known("sampling.num-samplers", "processes, each with groups of sampling.envs-per-group environments",
          other="num-processes workers n-workers procs cpu"),
    Known("sampling.num-samplers", "processes, each with groups of sampling.envs-per-group environments; "
          "in rl_games the number of all environments", other="num_actors"),
    Known("sampling.envs-per-group",
          "there all environments; here those of one group: all = num-samplers x groups-per-sampler x envs-per-group",
          cleanrl="num-envs", sb3="n_envs", puffer="vec.num_envs", other="num_env n_env training-num"),
    Known("sampling.envs-per-group", "there the agents of all environments; here the environments of one group",
          puffer="vec.total_agents"),
    Known("sampling.envs-per-group",
          "there those of a process; here those of one group: divide by sampling.groups-per-sampler",
          sf="num_envs_per_worker", rllib="num_envs_per_env_runner num_envs_per_worker"),
    Known("sampling.groups-per-sampler", sf="worker_num_splits"),
    Known("sampling.rollout-length", sf="rollout", cleanrl="num-steps", sb3="n_steps",
          rllib="rollout_fragment_length", puffer="train.bptt_horizon train.horizon",
          other="unroll_length horizon_length rollouts frames-per-proc"),
    Known("sampling.rollout-length", "recurrent policies learn from whole rollouts", sf="recurrence",
          rllib="model.max_seq_len max_seq_len", other="seq_length seq_len"),
    Known("sampling.rollout-length", "there the steps of all environments together: divide by their number",
          other="frames_per_batch step-per-collect steps-per-collect"),
    Known("sampling.slots-per-group", "1: synchronous; 2 or more: sampling overlaps learning", sf="async_rl"),
    Known("sampling.slots-per-group", "slots of each group, full or being filled; more slots, more lag",
          sf="num_batches_to_accumulate", rllib="learner_queue_size"),
    Known("run.inference-workers", sf="policy_workers_per_policy"),
    Known("", "no data is discarded for its age; fewer sampling.slots-per-group keep the lag small",
          sf="max_policy_lag"),
    Known("", "the environments of a group always step together", sf="batched_sampling", puffer="vec.batch_size"),
    Known("", "rollouts of all environments start at the first reset",
          sf="decorrelate_experience_max_seconds decorrelate_envs_on_one_worker"),
    Known("", "rollouts have a fixed length and continue over the end of an episode", rllib="batch_mode",
          other="episode-per-collect episodes-per-collect"),
    # -- batches
    Known("batch.minibatches", cleanrl="num-minibatches n-minibatch",
          other="nminibatches num-mini-batch mini_batches"),
    Known("batch.minibatches", "batch.slots is the size of an update", sf="num_batches_per_epoch"),
    Known("batch.minibatches", _ROWS_NOTE, sf="batch_size", sb3="batch_size",
          rllib="minibatch_size sgd_minibatch_size", puffer="train.minibatch_size"),
    Known("batch.slots", "slots of rollout-length x envs-per-group rows; 0: one of every group",
          rllib="train_batch_size train_batch_size_per_learner", puffer="train.batch_size"),
    Known("batch.epochs", sf="num_epochs", cleanrl="update-epochs", sb3="n_epochs", rllib="num_epochs num_sgd_iter",
          puffer="train.update_epochs", other="noptepochs ppo-epoch repeat-per-collect mini_epochs learning_epochs "
          "num_updates_per_batch train_pi_iters"),
    Known("batch.epochs", "passes over an update; in Spinning Up and Tianshou the length of a run, here stop.env-steps",
          other="epochs epoch", exact=True),
    Known("batch.epochs", "passes over an update, a whole number; replay.ratio is something else",
          puffer="train.replay_ratio", exact=True),
    Known("batch.shuffle", "rows or lanes", sf="shuffle_minibatches", rllib="shuffle_batch_per_epoch"),
    Known("", "rollouts of sampling.rollout-length steps and trace.trace-lambda take its place", rllib="n_step"),
    Known("replay.ratio", "replayed rows per fresh row", rllib="replay_proportion"),
    Known("replay.max-age", "in updates, not in slots", rllib="replay_buffer_num_slots"),
    Known("", "there is no buffer of old transitions; replay.ratio trains again on data of a few updates ago",
          cleanrl="buffer-size", sb3="buffer_size learning_starts"),
    Known("", "all lanes have the same weight", puffer="train.prio_alpha train.prio_beta0"),
    # -- the algorithm
    Known("algorithm.name", "actor_critic, dae, ppg, pqn; surrogate.objective has the variants of PPO", sf="algo",
          sb3="algo"),
    Known("trace.gamma", sf="gamma", cleanrl="gamma", sb3="gamma", rllib="gamma", puffer="train.gamma",
          other="discount discounting discount_factor"),
    Known("trace.trace-lambda", sf="gae_lambda", cleanrl="gae-lambda", sb3="gae_lambda", rllib="lambda_ lambda",
          puffer="train.gae_lambda", other="lam lmbda"),
    Known("trace.trace-lambda", "with algorithm.name pqn", cleanrl="q-lambda"),
    Known("trace.estimator", "gae, vtrace and others", sf="with_vtrace", cleanrl="gae", rllib="vtrace use_gae"),
    Known("trace.rho-bar", sf="vtrace_rho", rllib="vtrace_clip_rho_threshold", puffer="train.vtrace_rho_clip"),
    Known("trace.pg-rho-bar", rllib="vtrace_clip_pg_rho_threshold"),
    Known("trace.c-bar", sf="vtrace_c", puffer="train.vtrace_c_clip"),
    Known("surrogate.clip", cleanrl="clip-coef", sb3="clip_range", rllib="clip_param", puffer="train.clip_coef",
          other="clip_ratio eps-clip e_clip ratio_clip clip-eps clip_epsilon clipping_epsilon"),
    Known("surrogate.clip", "from 1 - clip to 1 + clip; there from 1 / (1 + clip)", sf="ppo_clip_ratio"),
    Known("surrogate.kl-coef", "with surrogate.objective decoupled_kl, which has the penalty in place of the clip",
          sf="kl_loss_coeff", rllib="kl_coeff use_kl_loss"),
    Known("", "surrogate.kl-coef is constant; optim.schedule kl_adaptive has the target optim.kl-target",
          rllib="kl_target"),
    Known("", "an update never stops early; optim.schedule kl_adaptive lowers the learning rate instead",
          cleanrl="target-kl", sb3="target_kl"),
    Known("loss.value-coef", _VALUE_NOTE, sf="value_loss_coeff", cleanrl="vf-coef", sb3="vf_coef",
          rllib="vf_loss_coeff", puffer="train.vf_coef"),
    Known("loss.value-coef", "weight of the mean squared error; some take half of the error, or the sum",
          other="value-loss-coef baseline_cost critic_coef value_loss_scale"),
    Known("loss.value-clip", "distance from the value before the update; 0: none", sf="ppo_clip_value",
          sb3="clip_range_vf", puffer="train.vf_clip_coef"),
    Known("loss.value-clip", "the distance itself; there clip-coef", cleanrl="clip-vloss"),
    Known("loss.value-clip", "the distance itself; there e_clip", other="clip_value"),
    Known("loss.value-clip", "bounds the change of the value; there it bounds the squared error",
          rllib="vf_clip_param"),
    Known("loss.entropy-coef", sf="exploration_loss_coeff", cleanrl="ent-coef", sb3="ent_coef",
          rllib="entropy_coeff", puffer="train.ent_coef"),
    Known("loss.entropy-coef", "of the mean over the batch; TorchBeast takes the sum",
          other="entropy-coef entropy_cost entropy_loss_scale ent-coeff"),
    Known("loss.entropy-final", "at the end, on a straight line from loss.entropy-coef",
          rllib="entropy_coeff_schedule"),
    Known("", "the bonus is always the entropy", sf="exploration_loss"),
    Known("ppg.policy-updates", "with algorithm.name ppg", cleanrl="n-iteration", exact=True),
    Known("batch.epochs", "with algorithm.name ppg", cleanrl="e-policy", exact=True),
    Known("ppg.phase-epochs", "with algorithm.name ppg", cleanrl="e-auxiliary"),
    Known("ppg.clone-coef", "with algorithm.name ppg", cleanrl="beta-clone"),
    Known("pqn.epsilon-start", "with algorithm.name pqn", cleanrl="start-e", sb3="exploration_initial_eps"),
    Known("pqn.epsilon-end", "with algorithm.name pqn", cleanrl="end-e", sb3="exploration_final_eps"),
    Known("pqn.epsilon-fraction", "with algorithm.name pqn", cleanrl="exploration-fraction",
          sb3="exploration_fraction"),
    Known("", "there is no learning from recorded data", rllib="beta input_ input_config", exact=True),
    Known("", "there is no model of the environment", rllib="model_size", exact=True),
    Known("", "episodes that a time limit ends always bootstrap", sf="value_bootstrap"),
    Known("", "noise does not depend on the state; model.log-std-init is its start", sf="adaptive_stddev",
          sb3="use_sde sde_sample_freq", rllib="model.free_log_std free_log_std"),
    Known("normalize.advantage", "over each update, not each minibatch", cleanrl="norm-adv", sb3="normalize_advantage"),
    Known("normalize.advantage", "always over each update", cleanrl="adv-norm-fullbatch"),
    Known("normalize.obs", sf="normalize_input", sb3="norm_obs", rllib="observation_filter",
          other="normalize_observations obs-norm"),
    Known("normalize.value-targets", sf="normalize_returns", other="normalize_value"),
    Known("normalize.value-targets", "there returns are only divided by their deviation",
          other="rew-norm reward_normalization return_scaling"),
    Known("normalize.reward", sb3="norm_reward", other="reward-norm"),
    Known("normalize.obs", "and normalize.reward", sb3="normalize", exact=True),
    Known("", "numbers that are normalized are clipped at 10", sb3="clip_obs"),
    Known("", "normalize.obs learns mean and scale; pictures with bounds are scaled to 0..1",
          sf="obs_scale obs_subtract_mean"),
    Known("env.reward-scale", sf="reward_scale", other="reward_scaling"),
    Known("env.reward-clip", "the bound itself; returns are reported unclipped", sf="reward_clip",
          other="reward_clipping"),
    Known("env.reward-clip", "the bound itself, 1 where true takes the sign there; returns are reported unclipped",
          sb3="clip_reward", rllib="clip_rewards"),
    # -- optimizer
    Known("optim.lr", sf="learning_rate", cleanrl="learning-rate", sb3="learning_rate", rllib="lr",
          puffer="train.learning_rate"),
    Known("optim.schedule linear", "to 0 at stop.env-steps", cleanrl="anneal-lr",
          other="use-linear-lr-decay lr-decay"),
    Known("optim.schedule linear", "to 0 at stop.env-steps, in a straight line; there a cosine",
          puffer="train.anneal_lr"),
    Known("optim.schedule", "constant, linear, kl_adaptive, ess, staleness", sf="lr_schedule", rllib="lr_schedule"),
    Known("optim.kl-target", "with optim.schedule kl_adaptive", sf="lr_schedule_kl_threshold", other="kl_threshold"),
    Known("optim.lr-min", "with optim.schedule kl_adaptive", sf="lr_adaptive_min"),
    Known("optim.lr-max", "with optim.schedule kl_adaptive", sf="lr_adaptive_max"),
    Known("optim.eps", sf="adam_eps", puffer="train.adam_eps"),
    Known("optim.beta1", sf="adam_beta1", puffer="train.adam_beta1"),
    Known("optim.beta2", sf="adam_beta2", puffer="train.adam_beta2"),
    Known("optim.max-grad-norm", sf="max_grad_norm", cleanrl="max-grad-norm", sb3="max_grad_norm", rllib="grad_clip",
          puffer="train.max_grad_norm", other="grad_norm_clipping grad_norm_clip grad_norm clip_norm clip_grad_norm "
          "truncate_grads"),
    Known("optim.eps", "beside optim.beta1 and optim.beta2", sb3="optimizer_kwargs"),
    Known("", "the optimizer is Adam", sf="optimizer", sb3="optimizer_class use_rms_prop", rllib="opt_type",
          puffer="train.optimizer"),
    Known("", "Adam is used without weight decay", sb3="weight_decay"),
    # -- network
    Known("model.hidden", "widths, as 256,256", sf="encoder_mlp_layers encoder_conv_mlp_layers", sb3="net_arch",
          rllib="model.fcnet_hiddens fcnet_hiddens", puffer="policy.hidden_size", other="hidden-sizes hid hidden-dim"),
    Known("model.hidden", "one width for each layer, as 256,256", puffer="policy.num_layers", other="num-layers"),
    Known("model.encoder", "auto, mlp, cnn, nature, impala, minatar or module:Class", sf="encoder_conv_architecture",
          sb3="features_extractor_class", rllib="model.custom_model custom_model", puffer="policy_name"),
    Known("model.encoder", "auto, mlp, cnn, nature, impala, minatar or module:Class; model.network is a whole one",
          other="network", exact=True),
    Known("model.encoder", "MlpPolicy: mlp, CnnPolicy: nature; proximal.policy is the center of the trust region",
          sb3="policy", exact=True),
    Known("model.core", "none, gru, lstm", sf="use_rnn rnn_type", rllib="model.use_lstm use_lstm", puffer="rnn_name",
          other="recurrent-policy lstm"),
    Known("model.core-size", sf="rnn_size", sb3="lstm_hidden_size", rllib="model.lstm_cell_size lstm_cell_size",
          puffer="rnn.hidden_size"),
    Known("", "a recurrent core has one layer, of model.core-size", sf="rnn_num_layers", sb3="n_lstm_layers"),
    Known("model.activation", "relu or tanh", sf="nonlinearity", sb3="activation_fn",
          rllib="model.fcnet_activation fcnet_activation model.conv_activation"),
    Known("model.separate", "the opposite: true has two networks", sf="actor_critic_share_weights",
          sb3="share_features_extractor", rllib="model.vf_share_layers vf_share_layers"),
    Known("model.log-std-init", "the logarithm of it", sf="initial_stddev"),
    Known("model.log-std-init", sb3="log_std_init"),
    Known("model.squash", "true or false: tanh of the sample; there the scale of a tanh of the mean",
          sf="continuous_tanh_scale"),
    Known("model.squash", "tanh of the sample, scaled to the bounds", sb3="squash_output"),
    Known("", "weights are always initialized orthogonally", sf="policy_initialization policy_init_gain",
          sb3="ortho_init"),
    Known("the section model", "as --model.hidden 256,256", sb3="policy_kwargs"),
    Known("the section model", "one flag for each setting", rllib="model model_config", exact=True),
    # -- saving, evaluation, logs
    Known("checkpoint.every-seconds", "in seconds", sf="save_every_sec", sb3="save-freq",
          rllib="checkpoint_frequency checkpoint-freq", puffer="train.checkpoint_interval", other="save-interval"),
    Known("checkpoint.keep", "the best one is kept as well", sf="keep_checkpoints", rllib="num_to_keep"),
    Known("checkpoint.milestones", "in steps, not seconds", sf="save_milestones_sec"),
    Known("", "checkpoints are always saved; the one with the best return is kept", sf="save_best_every_sec",
          cleanrl="save-model"),
    Known(f"{EVAL} --checkpoint best", sf="load_checkpoint_kind"),
    Known("eval.video", f"with eval.every; after training: {EVAL} --video out.mp4", cleanrl="capture-video"),
    Known(f"{EVAL} --video out.mp4", "after training", sf="save_video"),
    Known(f"{EVAL} --video out.mp4", "records episodes; training draws nothing", other="render watch play",
          exact=True),
    Known(f"{EVAL} --episodes 100", sf="max_num_episodes"),
    Known("eval.every", "in steps", sb3="eval-freq", rllib="evaluation_interval", other="eval-interval"),
    Known("eval.episodes", sb3="n_eval_episodes eval-episodes", rllib="evaluation_duration"),
    Known("eval.num-envs", sb3="n-eval-envs"),
    Known("eval.greedy", sf="eval_deterministic", sb3="deterministic"),
    Known("log.every-seconds", "in seconds", sf="experiment_summaries_interval", sb3="log-interval"),
    Known("log.quiet", "the opposite: true shows no progress", sb3="verbose progress_bar"),
    Known("log.wandb", sf="with_wandb", cleanrl="track", sb3="track", puffer="wandb",
          other="use-wandb"),
    Known("log.wandb-project", sf="wandb_project", cleanrl="wandb-project-name", sb3="wandb-project-name",
          rllib="wandb-project", puffer="wandb-project"),
    Known("log.wandb-group", sf="wandb_group", sb3="wandb-group", puffer="wandb-group"),
    Known("log.wandb-name", rllib="wandb-run-name"),
    Known("log.wandb-tags", "with commas", sf="wandb_tags", sb3="wandb-tags"),
    Known("log.wandb-tags", "with commas", puffer="tag", other="tags", exact=True),
    Known("log.wandb-group", other="group", exact=True),
    Known("", "wandb reads it from the environment variable WANDB_ENTITY", sf="wandb_user", cleanrl="wandb-entity",
          sb3="wandb-entity"),
    Known("", "wandb reads it from the environment variable WANDB_JOB_TYPE", sf="wandb_job_type"),
    Known("", "wandb reads it from the environment variable WANDB_API_KEY, or wandb login asks for it",
          rllib="wandb-key"),
    Known("", "metrics go to TensorBoard and Weights & Biases (log.wandb), not to Neptune",
          puffer="neptune neptune-name neptune-project"),
    Known("", "PufferLib does not read it; here --name NAME is the folder runs/NAME",
          puffer="train.name train.project", exact=True),
    Known("sfactory sweep TARGET --seeds 0..4", "the number of runs", rllib="num-samples", exact=True),
    Known("", "sfactory sweep tries all values of a list; docs/python.md has a search with Optuna",
          sb3="n-trials optimize-hyperparameters n-startup-trials pruner study-name", exact=True),
    Known("--print-config", "prints the settings and starts nothing", other="dry-run", exact=True),
    Known("--config FILE", "settings from a file", sb3="conf-file", other="config-file config-path", exact=True),
    Known("", "returns are means of the last 100 episodes", sf="stats_avg", sb3="stats_window_size",
          rllib="metrics_num_episodes_for_smoothing"),
    Known("sfactory pbt", "a command of its own, with --members, --period and others", sf="with_pbt num_policies"),
    Known("sfactory pbt TARGET --period 5M", sf="pbt_period_env_steps"),
    Known("sfactory pbt TARGET --start 20M", sf="pbt_start_mutation"),
    Known("sfactory pbt TARGET --replace 0.3", sf="pbt_replace_fraction"),
    Known("sfactory pbt TARGET --mutation-rate 0.15", sf="pbt_mutation_rate"),
)  # fmt: skip
"""The table, in the order of the page."""

OWN_PHASE = ("eval", "selfplay", "replay", "checkpoint", "log", "ppg", "pqn")
"""Sections that say of what a setting is: eval.num-workers is not sampling.num-samplers."""


def answer(name: str) -> str:
    """What a setting of another program is here, as `here stop.env-steps`; empty if no program has the name.

    name: as it was typed, also with the section that it has there, as `train.learning-rate`, or one of ours, as
    `optim.learning-rate`.
    """
    section, _, last = name.strip("-").rpartition(".")
    if whole := _index().get(_key(name)):
        return whole.answer
    parts = _last_parts()
    known = parts.get(_key(last)) or parts.get(_key(re.sub(r"^no[-_]", "", last)))
    if known is None or (section in OWN_PHASE and not known.here.startswith(f"{section}.")):
        return ""
    return known.answer


def names_target(name: str) -> bool:
    """Whether a setting of another program names the environment, as --env."""
    return answer(name).startswith("here TARGET")


def setting_of(name: str) -> str:
    """The setting here that a name without a section stands for, as `stop.env-steps`; empty if there is none."""
    if name in SHORT_FORMS:
        return SHORT_FORMS[name].replace("_", "-")
    known = _index().get(_key(name))
    return known.here if known and _SETTING.fullmatch(known.here) else ""


def note_of(name: str) -> str:
    """What differs in meaning or unit where `setting_of` knows the name; empty if nothing does."""
    known = None if name in SHORT_FORMS else _index().get(_key(name))
    return known.note if known else ""


def _key(name: str) -> str:
    """A name without what makes no difference."""
    return re.sub(r"[-_\s]", "", name.lower())


@cache
def _index() -> dict[str, Known]:
    """Key of a name as it is written -> its row. A name with a section counts without it, unless another row has it."""
    whole: dict[str, Known] = {}
    for known in KNOWN:
        for name in (name for program in PROGRAMS for name in known.names(program)):
            whole.setdefault(_key(name), known)
    return {**_last_parts(), **whole}


@cache
def _last_parts() -> dict[str, Known]:
    """Key of a name without its section -> its row, of the rows that are not exact."""
    last: dict[str, Known] = {}
    whole: dict[str, Known] = {}
    for known in (known for known in KNOWN if not known.exact):
        for name in (name for program in PROGRAMS for name in known.names(program)):
            if "." not in name:
                whole.setdefault(_key(name), known)
            last.setdefault(_key(name.rpartition(".")[2]), known)
    return {**last, **whole}
