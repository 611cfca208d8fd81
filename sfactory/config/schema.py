"""Every setting of a run: frozen dataclasses, whose field docstrings are the help text.

A `Config` is complete and checked once it exists: nothing is filled in at run time. Derived numbers are
properties. Checks across fields stand at the end, name the flags, and raise `ValueError` with one line for people.
Standard library only, as samplers import this. Presets, files and flags: `sfactory.config.presets`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from sfactory.config.bounds import check_batch, check_behavior_weight, check_ranges


@dataclass(frozen=True)
class Run:
    """Where and how a run happens."""

    dir: str = ""
    """Folder of the run. Empty: runs/<preset>_s<seed>_<date-time>. An existing one is refused, never resumed."""
    init_from: str = ""
    """A run or checkpoint whose weights and normaliser a new run begins with; steps and optimizer begin anew."""
    seed: int = 1
    """Seed of everything random. In lockstep the same seed gives the same run, bit for bit."""
    mode: Literal["async", "lockstep"] = "async"
    """async: every worker in its own process. lockstep: the same workers in one process, deterministic."""
    device: str = "auto"
    """Device of inference and learner: auto (CUDA where there is one), cpu, cuda, cuda:N."""
    inference_device: str = ""
    """Device of inference alone, as cuda:1 beside a learner on cuda:0. Empty: run.device."""
    learner_threads: int = 0
    """CPU threads of the learner: they share the rows of a minibatch of a few hundred or more, and change no bit of the
    result. 0: one per core, at most 4."""
    inference_threads: int = 1
    """CPU threads of the inference worker."""
    debug: bool = False
    """Poison released slots, so that reading what was never written shows as NaN. Costs a few percent."""
    profile: bool = False
    """Keep every single stage of every worker in debug/, for `sfactory profile`. A few MB a minute."""
    spare_restarts: int = 10
    """How often a worker may fail by itself without an update in between before the run ends (exit 7)."""
    stall_timeout: float = 300.0
    """Seconds without a finished update after which the run counts as stalled (exit 8)."""
    requeue: bool = False
    """SIGUSR1 saves, ends (exit 75) and asks SLURM to start the job again; the same command then resumes run.dir."""


@dataclass(frozen=True)
class Stop:
    """When a run is finished; 0 means no such rule. The first rule that holds ends the run."""

    env_steps: int = 10_000_000
    """Stop after this many trained agent decisions. Also the length of a linear learning-rate schedule."""
    frames: int = 0
    """Stop after this many environment frames (env_steps times frame skip)."""
    seconds: float = 0.0
    """Stop after this many seconds of training."""
    target_return: float | None = None
    """Stop as soon as the training return (mean of the last 100 whole games) reaches this."""


@dataclass(frozen=True)
class Env:
    """What is trained on."""

    name: str = ""
    """FAMILY/ID, as minatar/breakout or gymnasium/CartPole-v1. Several with commas: one policy learns them all."""
    protocol: str = ""
    """Evaluation protocol of the family, stamped on every score (Atari: dqn or machado)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the environment itself, passed on as they are."""
    reward_scale: float = 1.0
    """The learner multiplies rewards by this; reported returns stay raw."""
    reward_clip: float = 0.0
    """The learner clips rewards to +- this after scaling; 0 leaves them alone. Reported returns stay raw."""
    step_timeout: float = 120.0
    """Seconds an environment step may take before its sampler is killed and born anew."""
    fault_budget: int = 1000
    """Failures of environments (each is built anew, its game is dropped) after which the launch ends (exit 6)."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The environments by name; several groups of each, in turn."""
        return tuple(task.strip() for task in self.name.split(","))

    @property
    def arguments(self) -> dict[str, Any]:
        """What the family's `make` gets: the settings, and the protocol if one was asked for."""
        return {**self.settings, "protocol": self.protocol} if self.protocol else dict(self.settings)


@dataclass(frozen=True)
class Sampling:
    """How data is made."""

    num_samplers: int = 1
    """Sampler processes. One per core that is not busy with inference or learning."""
    groups_per_sampler: int = 2
    """Groups of environments per sampler. With two, one steps while the other waits for its actions."""
    envs_per_group: int = 64
    """Environments stepped together. More: larger inference batches, less overhead per step, more lag."""
    rollout_length: int = 32
    """Steps per slot (T). Longer: fewer bootstraps, more lag, more memory."""
    slots_per_group: int = 2
    """Slots each group owns. 1: synchronous and on-policy (lag 0). 2 and more: sampling overlaps learning."""
    auto: bool = False
    """Before training, try for 30 seconds (90 beside a GPU) how the same environments are best split over processes."""

    @property
    def num_groups(self) -> int:
        return self.num_samplers * self.groups_per_sampler

    @property
    def num_envs(self) -> int:
        return self.num_groups * self.envs_per_group


@dataclass(frozen=True)
class Learning:
    """How data becomes a better policy."""

    batch_slots: int = 0
    """Slots per update; 0: one per group. More: larger batches and, in async, more lag."""
    epochs: int = 1
    """Passes over each batch. More: better use of data, more time, further from the policy that acted."""
    minibatches: int = 1
    """Optimizer steps per epoch. Lanes (environments in the batch) must divide into them."""
    shuffle: Literal["rows", "lanes"] = "rows"
    """What a minibatch is drawn from: rows, or whole lanes (rollouts), which recurrent policies always need."""
    gamma: float = 0.99
    """Discount per agent decision."""
    trace_lambda: float = 0.95
    """Lambda of the trace: 0 trusts the value function, 1 trusts the rewards."""
    trace: Literal["gae", "vtrace", "leaky_vtrace", "rbis"] = "gae"
    """Estimator of value targets and advantages. vtrace corrects for who acted, and shortens the trace."""
    rho_bar: float = 1.0
    """V-trace clip of the weight on each temporal difference: decides what is learnt."""
    c_bar: float = 1.0
    """V-trace clip of the trace coefficient: decides how fast."""
    pg_rho_bar: float = 1.0
    """Clip of the weight on the policy gradient when behavior_weight is trace."""
    leak: float = 1.0
    """leaky_vtrace: 1 is V-trace, 0 unclipped importance sampling."""
    proximal: Literal["behavior", "recompute", "ewma", "interpolate", "snapshot"] = "recompute"
    """Centre of the trust region: behavior (who acted), recompute (start of update), ewma (mean weights)."""
    proximal_com: float = 0.0
    """ewma: centre of mass in optimizer steps; 0: the number of optimizer steps of one update."""
    snapshot_age: int = 1
    """snapshot: the trust region sits at the weights of this many updates ago; 0: at those that acted, step by step."""
    snapshots_kept: int = 8
    """snapshot with age 0: versions kept. Steps older than that keep the stored log-probability."""
    surrogate: Literal[
        "ppo", "decoupled", "decoupled_kl", "impala", "is_pg", "cispo", "topr", "mdpo", "dppo_tv", "sapo", "mhpo",
    ] = "decoupled"  # fmt: skip
    """Policy objective."""
    clip: float = 0.2
    """Trust region on the ratio over the proximal policy. Smaller: safer and slower."""
    dual_clip: float = 0.0
    """Bound on the loss of bad actions in multiples of the advantage (3 to 10); 0: off."""
    kl_coef: float = 1.0
    """Coefficient of the KL penalty of decoupled_kl and mdpo."""
    weight_cap: float = 100.0
    """Cap on the weight (policy over behavior)."""
    behavior_weight: Literal["surrogate", "trace", "none", "twice"] = "surrogate"
    """Where the weight proximal/behavior enters, exactly once; twice: as Sample Factory does, an ablation."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    value_clip: float = 0.0
    """Clip of the change of the value per update, PPO style; 0: off."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    forced_lag: int = 0
    """Train on data k updates old: weights are published late. Lockstep or slots_per_group 1 only."""
    batch_factor: float = 1.0
    """Divide the batch by this and rescale what theory says (arXiv 2110.00641); 0.25 is four times larger."""
    batch_rule: Literal["hilton", "more_minibatches"] = "hilton"
    """Which co-scaling recipe batch_factor follows."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks in both workers; ratios and value heads are always fp32."""
    nonfinite_budget: int = 5
    """Updates in a row that may be skipped for a non-finite loss or gradient before the run ends (exit 9)."""


@dataclass(frozen=True)
class Optim:
    """How weights move."""

    lr: float = 1e-3
    """Learning rate of Adam."""
    schedule: Literal["constant", "linear", "kl_adaptive", "ess"] = "constant"
    """constant; linear to 0 at stop.env_steps; kl_adaptive; ess: times sqrt(effective sample size)."""
    kl_target: float = 0.01
    """kl_adaptive: the KL per update it steers to."""
    beta1: float = 0.9
    """Adam's first decay."""
    beta2: float = 0.999
    """Adam's second decay."""
    eps: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm; 0: never."""


@dataclass(frozen=True)
class Model:
    """The network."""

    encoder: str = "auto"
    """auto (by the shape of the observation), mlp, minatar, nature, impala, or your own as module:Class."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the fully connected layers."""
    activation: Literal["relu", "tanh"] = "relu"
    """Non-linearity."""
    core: Literal["none", "gru", "lstm"] = "none"
    """Memory between steps."""
    core_size: int = 128
    """Width of the memory."""
    separate: bool = False
    """Separate trunks for actor and critic."""
    log_std_init: float = 0.0
    """Continuous actions: initial logarithm of the standard deviation."""
    squash: bool = False
    """Continuous actions: tanh of the sample, stretched over the bounds, instead of clipping at them."""


@dataclass(frozen=True)
class Normalize:
    """What is rescaled before it is learnt from. Statistics travel with the weights."""

    obs: bool = False
    """Observations to zero mean and unit variance (float leaves only), clipped at +-10."""
    value_targets: bool = False
    """The value head learns targets of mean 0 and variance 1 (PopArt, arXiv 1809.04474), whatever rewards are."""
    reward: bool = False
    """Rewards divided by the running standard deviation of the discounted return."""
    advantage: bool = True
    """Advantages to zero mean and unit variance over the valid steps of each update."""
    advantage_span: float = 1.0
    """Updates the advantage moments are averaged over; 1: each update alone."""


@dataclass(frozen=True)
class Checkpoint:
    """What is kept on disk."""

    every_seconds: float = 60.0
    """Seconds between checkpoints: what a power cut may cost."""
    keep: int = 3
    """Newest good checkpoints kept. The one with the best training return (of 100 games at least) is kept besides."""
    milestones: int = 0
    """Every so many env_steps one checkpoint is made and kept for good: policies of different ages. 0: none."""
    exact: bool = True
    """Lockstep: save the environments too, so that a resume is bit for bit; refuses those that cannot be saved."""


@dataclass(frozen=True)
class Eval:
    """Whole games during training, in environments of their own (eval/* in the curves)."""

    every: int = 0
    """Env steps between evaluations; 0: none. async: a process of its own plays the checkpoint written for it."""
    episodes: int = 20
    """Games per evaluation, of every task; each evaluation begins the same ones. More: less noise, later results."""
    greedy: bool = False
    """The likeliest action instead of a sampled one."""


@dataclass(frozen=True)
class Log:
    """What is reported."""

    every_seconds: float = 5.0
    """Seconds between rows of metrics (async). Shorter: finer curves, larger files."""
    every_updates: int = 20
    """Updates between rows of metrics (lockstep, where wall-clock must not decide anything)."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the extra wandb)."""
    console_seconds: float = 10.0
    """Seconds between lines of progress where the console is no terminal."""
    quiet: bool = False
    """No progress on the console."""


@dataclass(frozen=True)
class Config:
    """A run, complete."""

    run: Run = field(default_factory=Run)
    stop: Stop = field(default_factory=Stop)
    env: Env = field(default_factory=Env)
    sampling: Sampling = field(default_factory=Sampling)
    learning: Learning = field(default_factory=Learning)
    optim: Optim = field(default_factory=Optim)
    model: Model = field(default_factory=Model)
    normalize: Normalize = field(default_factory=Normalize)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    eval: Eval = field(default_factory=Eval)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_batch(self)
        check_behavior_weight(self.learning)

    @property
    def batch_slots(self) -> int:
        """Slots per update."""
        return self.learning.batch_slots or self.sampling.num_groups

    @property
    def lanes(self) -> int:
        """Environments side by side in one batch: B."""
        return self.batch_slots * self.sampling.envs_per_group

    @property
    def batch_rows(self) -> int:
        """Rows of one update: T x B, reset rows included."""
        return self.sampling.rollout_length * self.lanes

    @property
    def optimizer_steps_per_update(self) -> int:
        return self.learning.epochs * self.learning.minibatches


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Plain nested dict, as it is written to TOML and JSON."""
    return dataclasses.asdict(config)
