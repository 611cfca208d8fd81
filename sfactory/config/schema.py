"""Every setting of a run: frozen dataclasses whose field docstrings are the help text.

A `Config` is complete and checked as soon as it exists: nothing is filled in at run time, derived numbers are
properties. The bound of a field stands in its annotation, as `Annotated[int, Ge(1)]` (`sfactory.config.bounds`); rules
across fields are in `sfactory.config.cross_checks`. Both raise ValueError with one line that names the flag.
Standard library only, because sampler processes import this. Presets and files: `sfactory.config.presets`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sfactory.config.algorithms import rules_of
from sfactory.config.bounds import (
    DEVICE,
    DEVICE_OR_EMPTY,
    ENCODER,
    LARGEST,
    NETWORK,
    AnyNumber,
    Below,
    Between,
    Each,
    Ge,
    Gt,
    Not,
    Seconds,
    ZeroOr,
    check_bounds,
)
from sfactory.config.cross_checks import check_together
from sfactory.config.renamed import current_name
from sfactory.config.values import plain_table

if TYPE_CHECKING:
    from sfactory.envs.options import EnvOptions


EVALUATION_ENVS = 32
"""Copies of an environment that an evaluation builds, at most, unless eval.num_envs says otherwise."""
MOST_INFO_KEYS = 20
"""Numbers of `info` that become curves, at most."""


@dataclass(frozen=True)
class Run:
    """Where and how a run is executed."""

    dir: str = ""
    """Folder of the run. Empty: runs/<preset>_s<seed>_<date-time>. An existing folder is an error."""
    init_from: str = ""
    """A run or checkpoint whose weights and normalizers a new run starts with; steps and optimizer start fresh."""
    seed: Annotated[int, Between(0, LARGEST)] = 1
    """Seed of all random numbers. In lockstep the same seed gives the same run, bit for bit."""
    mode: Literal["async", "lockstep"] = "async"
    """async: every worker in its own process. lockstep: the same workers in one process; slower, deterministic."""
    device: Annotated[str, DEVICE] = "auto"
    """Device of inference and learner: auto (CUDA if available), cpu, cuda, cuda:N."""
    inference_device: Annotated[str, DEVICE_OR_EMPTY] = ""
    """Device of inference alone, for example cuda:1 next to a learner on cuda:0. Empty: run.device."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks in inference and learner; ratios and value heads are always fp32. auto: bf16 for image
    encoders (cnn, nature, impala) without a core, if a measurement of a second at the start finds it at least 1.1 times
    as fast here; fp32 for small networks and in lockstep. The first choice of a run stays on resume."""
    kernels: Literal["auto", "native", "torch", "autograd"] = "auto"
    """Code of the networks and the loss. native: small C kernels, built at the first start. torch: torch's operators,
    with the loss differentiated by formula where there is one. autograd: torch differentiates everything; the slow
    reference. auto: the fastest that works here. The choice changes the last bits of results, nothing else."""
    learner_threads: Annotated[int, Between(0, 1024)] = 0
    """CPU threads of the learner, which share the rows of a minibatch of a few hundred or more. They do not change
    any bit of the result. 0: one per core, at most 4."""
    inference_threads: Annotated[int, Between(1, 1024)] = 1
    """CPU threads of each inference worker."""
    inference_workers: Annotated[int, Between(0, 1024)] = 0
    """Inference workers; each computes the actions of its share of the samplers. More: less waiting where actions are
    the bottleneck, smaller batches, 170 MB each. 0: by cores; one with a GPU. Lockstep always has one."""
    debug: bool = False
    """Fill released slots with NaN, so that a read of unwritten data is visible; with several learners, compare their
    weights after every update. Costs a few percent of speed."""
    profile: bool = False
    """Record every stage of every worker in debug/, for `sfactory profile`. Writes a few MB per minute."""
    spare_restarts: Annotated[int, Ge(0)] = 10
    """Failures of one worker before the run ends (exit 7, or 6 if its environments hang or cannot be built); five slots
    that it helps to fill make up for one of them, unless it hung for more than a quarter of its time."""
    stall_timeout: Annotated[float, Gt(0)] = 300.0
    """Seconds in which no environment step and no update arrives before the run ends as stalled (exit 8). Environments
    that are being built or stepped have limits of their own: env.build_timeout and env.step_timeout."""
    requeue: bool = False
    """On SIGUSR1 save, exit with 75 and request a requeue from SLURM; the same command then resumes run.dir."""


@dataclass(frozen=True)
class Stop:
    """When a run is finished: at the first rule that holds. 0 disables a rule."""

    env_steps: Annotated[int, Ge(0)] = 10_000_000
    """Stop after this many steps that were trained on. Where an environment has several agents, these are agent
    steps: three agents that act together take three in one step of the environment. Also the end of what follows a line
    over the run: optim.schedule linear, loss.entropy_final, the epsilon of pqn, the penalty of mdpo."""
    frames: Annotated[int, Ge(0)] = 0
    """Stop after this many frames (env_steps times frame skip)."""
    seconds: Annotated[float, Ge(0)] = 0.0
    """Stop after this many seconds of training."""
    target_return: Annotated[float | None, AnyNumber()] = None
    """Stop when the training return (mean of the last 100 complete episodes) reaches this."""


@dataclass(frozen=True)
class Env:
    """The environment that is trained on."""

    name: str = ""
    """FAMILY/ID, as minatar/breakout or gymnasium/CartPole-v1, or a class or function of your own, as my_file:MyEnv.
    Several with commas: one policy learns all of them."""
    protocol: str = ""
    """Evaluation protocol of the family, recorded with every score (Atari: dqn or machado)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, as `--env.settings.KEY VALUE`: numbers, text, booleans, none, lists and tables of
    these. `--env.settings.config.lanes 4` is a key of the table `config`."""
    wrappers: str = ""
    """Wrappers around every environment, the innermost first, with commas: `my_file:wrap` (a class or a function of
    the environment) or the name of one of gymnasium's wrappers, as FrameStackObservation; SmallPictures for several
    agents."""
    wrapper_settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the wrappers, a table for each by its name, as `--env.wrapper-settings.NAME.KEY VALUE`."""
    drop: str = ""
    """Leaves of the observation that are left out, with commas, as `mission` or `obs/mission`."""
    agent_id: bool = False
    """Append the number of the agent, one-hot, to its observation, in environments with several agents."""
    pad_spaces: bool = False
    """Agents may have spaces of different sizes: smaller observations are padded with zeros, and choices that an agent
    does not have are masked."""
    info_keys: str = ""
    """Numbers in `info` at the end of an episode that become curves info/NAME, with commas; `goal.reached` is the entry
    `reached` of the table `goal`; `is_success` is recorded in any case. Empty: all plain numbers, at most 20. With
    names, CartPole and MuJoCo are stepped as single environments, because native code reports no numbers."""
    reward_scale: Annotated[float, Not(0)] = 1.0
    """Factor on rewards in the learner; negative: the return is minimized. Reported returns stay unscaled."""
    reward_clip: Annotated[float, Ge(0)] = 0.0
    """Clip rewards in the learner to +- this, after scaling; 0: no clipping. Reported returns stay unclipped.
    `normalize.reward` also clips, at +-10."""
    step_timeout: Annotated[float, Seconds()] = 120.0
    """Seconds that one step of one environment may take before its sampler is killed and restarted."""
    build_timeout: Annotated[float, Seconds()] = 600.0
    """Seconds that one environment may take to be built and reset for the first time."""
    fault_budget: Annotated[int, Ge(0)] = 100_000
    """Environment failures per million steps above which the run ends (exit 6); each cuts an episode. A budget of 1,000
    or more is judged when there were 1,000 failures in the newest steps: 100k ends a run after 1,000 in 10,000 steps.
    A smaller one is a number of failures in the newest million steps. 0: the first failure ends the run."""

    def __post_init__(self) -> None:
        if (listed := len(_listed(self.info_keys))) > MOST_INFO_KEYS:
            raise ValueError(f"env.info-keys lists {listed} numbers, at most {MOST_INFO_KEYS} are recorded; list fewer")
        for name in ("settings", "wrapper_settings"):  # only what config.toml can hold
            object.__setattr__(self, name, plain_table(getattr(self, name), f"env.{name.replace('_', '-')}"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the environments; groups are assigned to them in turn."""
        return tuple(task.strip() for task in self.name.split(","))

    @property
    def options(self) -> EnvOptions:
        """Everything these settings say about the environment itself, as `sfactory.envs.make_group` takes it."""
        from sfactory.envs.options import EnvOptions

        return EnvOptions(
            settings=self.settings,
            protocol=self.protocol,
            wrappers=_listed(self.wrappers),
            wrapper_settings=self.wrapper_settings,
            drop=_listed(self.drop),
            agent_id=self.agent_id,
            pad_spaces=self.pad_spaces,
            info_keys=_listed(self.info_keys),
        )


@dataclass(frozen=True)
class Sampling:
    """How data is collected."""

    num_samplers: Annotated[int, Between(0, 4096)] = 0
    """Sampler processes, each with its own environments. 0: by cores; the environments of one sampler, as the two
    settings below describe them, are divided among as many samplers as there are cores for. Lockstep: one."""
    groups_per_sampler: Annotated[int, Between(1, 1024)] = 2
    """Groups of environments per sampler. With two, one group steps while the other waits for its actions."""
    envs_per_group: Annotated[int, Between(1, 1_000_000)] = 64
    """Environments stepped together. More: larger inference batches, less overhead per step, more lag."""
    rollout_length: Annotated[int, Between(1, 65535)] = 32  # bits of a request word
    """Steps per slot (T). More: fewer bootstraps, more lag, more memory."""
    slots_per_group: Annotated[int, Between(1, 255)] = 2  # bits of a request word
    """Slots owned by each group. 1: synchronous and on-policy (lag 0). 2 or more: sampling overlaps learning."""
    min_samplers: Annotated[int, Between(1, 4096)] = 1
    """With num_samplers 0, the fewest samplers on a machine with two cores or more. 2: for simulators that cost more
    than the network (MuJoCo); the samplers then share the cores with the learner."""
    auto: bool = False
    """Before training, search for 30 seconds (90 with a GPU) for the fastest split of the same environments over
    processes."""

    @property
    def samplers(self) -> int:
        """Number of samplers. Without a number of its own a run has one, until the cores of a machine are known."""
        return max(1, self.num_samplers)

    @property
    def num_groups(self) -> int:
        return self.samplers * self.groups_per_sampler

    @property
    def num_envs(self) -> int:
        return self.num_groups * self.envs_per_group


@dataclass(frozen=True)
class BatchConfig:
    """Which data an update trains on, and how often."""

    slots: Annotated[int, Ge(0)] = 0
    """Slots per update; 0: one per group. Fewer: smaller batches and, in async mode, more lag, at most about
    (groups x sampling.slots_per_group) / batch.slots updates."""
    epochs: Annotated[int, Between(1, 1000)] = 1
    """Passes over each batch. More: better use of data, more time, further from the policy that acted."""
    minibatches: Annotated[int, Ge(1)] = 1
    """Optimizer steps per epoch. Must divide the number of lanes (environments in the batch). More: noisier steps,
    further from the policy that acted."""
    shuffle: Literal["rows", "lanes"] = "rows"
    """Unit of minibatches: single rows, or complete lanes (rollouts), which recurrent policies and algorithm.name dae
    always use."""
    forced_lag: Annotated[int, Between(0, 10_000)] = 0
    """Train on data k updates old by publishing weights late. Lockstep or sampling.slots_per_group 1 only."""
    factor: Annotated[float, Gt(0)] = 1.0
    """Divide the batch by this and rescale other settings by theory (arXiv 2110.00641); 0.25: four times larger."""
    rule: Literal["hilton", "more_minibatches", "none"] = "hilton"
    """Rescaling rule for batch.factor and for several learners, whose batches add up. none: keep all other settings."""


@dataclass(frozen=True)
class ReplayConfig:
    """Reuse of stale data: the learner trains again on slots it has had, beside fresh ones."""

    ratio: Annotated[float, Between(0, 64)] = 0.0
    """Replayed rows per fresh row of a batch, in whole slots. 1: every row is trained on twice on average. More: better
    use of data, older data, longer updates. 0: off."""
    max_age: Annotated[int, Between(1, 10_000)] = 4
    """Updates after which a slot is trained on for the last time. More: older data, more memory (as many batches)."""


@dataclass(frozen=True)
class AlgorithmConfig:
    """What is learned from the data."""

    name: Literal["actor_critic", "dae", "ppg", "pqn"] = "actor_critic"
    """actor_critic: a policy and a value function; the sections trace, proximal and surrogate select its parts. dae: a
    policy whose advantages are learned by the network, without importance ratios in the critic. ppg: actor_critic, and
    a phase every few updates in which the policy's network learns the values too. pqn: action values by Q(lambda),
    without a policy of its own. docs/algorithms.md compares them."""


@dataclass(frozen=True)
class DaeConfig:
    """algorithm.name dae: what the learned advantages are used for."""

    advantages: Literal["returns", "taken", "all"] = "returns"
    """What improves the policy. returns: the learned advantage of the action that was taken plus the error of the
    critic, that is what was received after it, corrected for later actions. taken: the learned advantage alone, as in
    the paper. all: the learned advantages of all actions, with no weight for stale data."""


@dataclass(frozen=True)
class PpgConfig:
    """algorithm.name ppg: the auxiliary phase."""

    policy_updates: Annotated[int, Between(1, 10_000)] = 32
    """Updates between two auxiliary phases. Their batches are kept in memory until then."""
    phase_epochs: Annotated[int, Between(1, 1000)] = 6
    """Passes over these batches in an auxiliary phase."""
    phase_minibatches: Annotated[int, Between(0, 65_536)] = 0
    """Minibatches per pass and batch in an auxiliary phase; 0: batch.minibatches. Must divide the number of lanes."""
    clone_coef: Annotated[float, Ge(0)] = 1.0
    """Weight of the KL from the policy before the phase. Smaller: the policy may move while values are learned."""


@dataclass(frozen=True)
class PqnConfig:
    """algorithm.name pqn: the share of random actions."""

    epsilon_start: Annotated[float, Between(0, 1)] = 1.0
    """Share of random actions at the start."""
    epsilon_end: Annotated[float, Between(0, 1)] = 0.05
    """Share of random actions after the first pqn.epsilon-fraction of the run."""
    epsilon_fraction: Annotated[float, Between(0, 1)] = 0.1
    """Fraction of stop.env-steps over which the share changes from the first to the last value, in a straight line."""


@dataclass(frozen=True)
class TraceConfig:
    """How value targets and advantages are estimated."""

    estimator: Literal["gae", "vtrace", "leaky_vtrace", "retrace", "truncated_is", "recursive_retrace", "rbis"] = "gae"
    """Estimator of value targets and advantages. All but gae correct for the policy that acted; docs/algorithms.md has
    the formulas."""
    gamma: Annotated[float, Between(0, 1)] = 0.99
    """Discount per agent step. More: a longer horizon, more variance."""
    trace_lambda: Annotated[float, Between(0, 1)] = 0.95
    """Lambda of the trace. 0: trust the value function (bias). 1: trust the rewards (variance)."""
    rho_bar: Annotated[float, Gt(0)] = 1.0
    """V-trace: clip of the weight on each temporal difference; sets which policy the values belong to. retrace,
    truncated_is, recursive_retrace, rbis: clip of the weight on the first one of a target only."""
    c_bar: Annotated[float, Gt(0)] = 1.0
    """V-trace: clip of the trace coefficient, at most rho_bar. More: faster propagation of rewards, more variance."""
    pg_rho_bar: Annotated[float, Gt(0)] = 1.0
    """Clip of the weight on the policy gradient when surrogate.behavior_weight is trace. More: less bias, more
    variance."""
    leak: Annotated[float, Between(0, 1)] = 1.0
    """leaky_vtrace: 1 is V-trace, 0 is importance sampling without clipping."""
    baseline: Literal["none", "optimal"] = "none"
    """What is subtracted from the advantages at the start of an update, besides their mean. optimal: the constant with
    the least variance of the policy gradient, weighted by ratios and by the size of each action's gradient."""


@dataclass(frozen=True)
class ProximalConfig:
    """The proximal policy: the center of the trust region."""

    policy: Literal["behavior", "recompute", "ewma", "interpolate", "snapshot"] = "recompute"
    """Center of the trust region: behavior (the policy that acted), recompute (start of the update), ewma (average of
    weights; costs 33 to 51 % more time), interpolate (between behavior and policy), snapshot (older weights)."""
    center_of_mass: Annotated[float, Ge(0)] = 0.0
    """ewma: mean age of the averaged weights in optimizer steps; 0: the optimizer steps of one update."""
    snapshot_age: Annotated[int, Between(0, 10_000)] = 1
    """snapshot: use the weights of this many updates ago; 0: for each step, the weights that acted."""
    snapshots_kept: Annotated[int, Between(1, 10_000)] = 8
    """snapshot with age 0: versions kept in memory. Steps older than that use the stored log-probability."""

    @property
    def by_step(self) -> bool:
        """Whether every step has the weights that selected its action, so that there are several versions."""
        return self.policy == "snapshot" and not self.snapshot_age

    @property
    def has_distribution(self) -> bool:
        """Whether the probabilities of all actions are known, and not only of those that were taken."""
        return self.policy != "interpolate" and not self.by_step


@dataclass(frozen=True)
class SurrogateConfig:
    """The surrogate loss of the policy."""

    objective: Literal[
        "ppo",
        "decoupled",
        "decoupled_kl",
        "impala",
        "is_pg",
        "cispo",
        "topr",
        "mdpo",
        "dppo_tv",
        "dppo_kl",
        "sapo",
        "mhpo",
        "dispo",
        "rec_one_side",
        "rec_wide",
        "rec_ring",
        "opmd",
        "asymre",
        "geppo",
        "minpro",
        "bapo",
        "r2vpo",
        "bpo",
    ] = "decoupled"
    """The surrogate loss; docs/algorithms.md has the formulas."""
    behavior_weight: Literal["surrogate", "trace", "none", "twice"] = "surrogate"
    """Where the weight proximal/behavior is applied: in the surrogate, in the trace, nowhere (none), or in both (twice,
    as in Sample Factory, for comparison)."""
    mask: Literal["none", "m2po", "erc"] = "none"
    """Samples that are left out, with any objective. m2po: those with the largest weights of the update, until the rest
    has a bounded second moment. erc: those where the entropy changed by too large a factor."""
    clip: Annotated[float, Gt(0)] = 0.2
    """Trust region on the ratio over the proximal policy. Smaller: safer and slower. geppo: of the weight, dppo_tv: of
    the probability, dppo_kl: in nats (0.02 is about a ratio's 0.2). Objectives without a trust region count with it in
    losses/clipfrac only."""
    dual_clip: Annotated[float, ZeroOr(Gt(1))] = 0.0
    """Bound on the loss of bad actions in multiples of the advantage (3 to 10); 0: no bound."""
    kl_coef: Annotated[float, Ge(0)] = 1.0
    """Coefficient of the KL penalty of decoupled_kl and mdpo. More: smaller policy changes per update."""
    kl_anneal: bool = True
    """mdpo: divide kl_coef by the share of stop.env_steps that is left (at least 0.01), as in the paper."""
    weight_cap: Annotated[float, Ge(1)] = 100.0
    """Upper bound of the weight (policy over behavior). Smaller: less variance, more bias on old data."""
    log_ratio_coef: Annotated[float, Ge(0)] = 0.1
    """opmd: coefficient of the squared logarithm of the ratio. More: smaller policy changes per update."""
    baseline_shift: Annotated[float, Ge(0)] = 0.1
    """asymre: number added to every advantage. More: good actions count more than bad ones; 0: a plain gradient."""
    outer_low: Annotated[float, Gt(0)] = 0.6
    """rec_wide and rec_ring: distance of the outer lower bound of the ratio below 1; 1 or more: no bound."""
    outer_high: Annotated[float, Gt(0)] = 2.0
    """rec_wide and rec_ring: distance of the outer upper bound of the ratio above 1."""
    ratio_weight: bool = True
    """rec_one_side, rec_wide, rec_ring: weigh samples by the ratio over the proximal policy too."""
    weight_low: Annotated[float, Ge(0)] = 0.8
    """dispo: lower bound of the weight of good actions. More: they are imitated more after they became rare."""
    weight_high: Annotated[float, Gt(0)] = 11.0
    """dispo: upper bound of the weight of good actions."""
    weight_low_negative: Annotated[float, Ge(0)] = 0.0
    """dispo: lower bound of the weight of bad actions. More: they are avoided more after they became rare."""
    weight_high_negative: Annotated[float, Gt(0)] = 101.0
    """dispo: upper bound of the weight of bad actions."""
    gate_temperature: Annotated[float, Gt(0)] = 1.0
    """sapo: temperature of the gate of good actions. More: a narrower gate."""
    gate_temperature_negative: Annotated[float, Gt(0)] = 1.05
    """sapo: temperature of the gate of bad actions. More: a narrower gate."""
    ratio_bound: Annotated[float, Gt(0)] = 1.5
    """mhpo: bound of the logarithm of the ratio."""
    hazard_shape: Annotated[float, Gt(0)] = 1.5
    """mhpo: exponent of the damping of ratios above 1. More: large ratios are damped more."""
    hazard_scale: Annotated[float, Gt(0)] = 1.0
    """mhpo: scale of the damping of ratios above 1. More: it sets in later."""
    hazard_shape_negative: Annotated[float, Gt(0)] = 2.0
    """mhpo: exponent of the damping of ratios below 1. More: small ratios are damped more."""
    hazard_scale_negative: Annotated[float, Gt(0)] = 0.8
    """mhpo: scale of the damping of ratios below 1. More: it sets in later."""
    balance: Annotated[float, Gt(0)] = 1.0
    """bapo: the bounds of the ratio are moved until good over bad contributions to the loss are at least this."""
    bound_low: Annotated[float, Gt(0)] = 0.6
    """bapo: lower bound of the ratio where the search starts."""
    bound_low_max: Annotated[float, Gt(0)] = 0.9
    """bapo: largest lower bound of the ratio; below bound_low: it does not move."""
    bound_high: Annotated[float, Gt(0)] = 1.2
    """bapo: upper bound of the ratio where the search starts."""
    bound_high_max: Annotated[float, Between(0.001, 1000)] = 3.0
    """bapo: largest upper bound of the ratio; below bound_high: it does not move."""
    bound_high_step: Annotated[float, Ge(0.001)] = 0.1
    """bapo: step of the upper bound."""
    variance_target: Annotated[float, Gt(0)] = 0.02
    """r2vpo: bound of the variance of the ratio, about twice the KL per update. More: larger policy changes."""
    dual_rate: Annotated[float, Ge(0)] = 1.0
    """r2vpo: step size of the coefficient of the variance; 0: it stays at dual_start."""
    dual_start: Annotated[float, Ge(0)] = 1.0
    """r2vpo: coefficient of the variance at the start of the run."""
    target_temperature: Annotated[float, Gt(0)] = 0.001
    """bpo: distance of an action value from the median over which the target of the ratio changes from
    1 - clip to 1 + clip, in the units of the value head."""
    median_head: bool = True
    """bpo: a further head of the network for the median of the action values; false: the value takes its place."""
    second_moment: Annotated[float, Gt(0)] = 0.04
    """m2po: bound of the mean squared logarithm of the weights that are kept. More: fewer samples are left out."""
    entropy_ratio_low: Annotated[float, Ge(0)] = 0.95
    """erc: samples whose entropy fell to less than this multiple of the proximal policy's are left out."""
    entropy_ratio_high: Annotated[float, Gt(0)] = 1.05
    """erc: samples whose entropy rose to more than this multiple of the proximal policy's are left out."""

    @property
    def has_median_head(self) -> bool:
        """Whether the network has a head for the median of the action values."""
        return self.objective == "bpo" and self.median_head


@dataclass(frozen=True)
class LossConfig:
    """The other terms of the loss, and the budget for non-finite losses."""

    value_coef: Annotated[float, Ge(0)] = 0.5
    """Weight of the value loss."""
    value_clip: Annotated[float, Ge(0)] = 0.0
    """Clip of the change of the value per update, PPO style; 0: no clipping."""
    value_sigma: Annotated[float, Between(0.01, 100)] = 0.75
    """model.value_head hl_gauss: standard deviation of a target's distribution, in widths of a bin. More: a target
    reaches more bins."""
    entropy_coef: Annotated[float, Ge(0)] = 0.01
    """Weight of the entropy bonus. More: more exploration, less exploitation."""
    entropy_final: Annotated[float | None, Ge(0)] = None
    """Weight of the entropy bonus at stop.env_steps, to which it moves on a line from entropy_coef. none: it stays."""
    nonfinite_budget: Annotated[int, Ge(1)] = 5
    """Updates in a row that may be skipped, wholly or in part, for a non-finite loss or gradient before the run ends
    (exit 9)."""


@dataclass(frozen=True)
class Optim:
    """The optimizer (Adam) and its learning-rate schedule."""

    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate of Adam."""
    schedule: Literal["constant", "linear", "kl_adaptive", "ess", "staleness"] = "constant"
    """constant; linear to 0 at stop.env_steps; kl_adaptive: by the KL of every whole update, for which it computes one
    more forward pass; ess: times sqrt(effective sample size); staleness: divided by the mean lag of the batch."""
    decay_share: Annotated[float, Between(0.001, 1)] = 1.0
    """linear: share of the run, at its end, in which the rate falls to 0; before, it is optim.lr. 1: the whole run."""
    kl_target: Annotated[float, Gt(0)] = 0.01
    """kl_adaptive: target of the KL divergence per update. More: larger learning rates."""
    lr_min: Annotated[float, Gt(0)] = 1e-6
    """kl_adaptive: smallest learning rate."""
    lr_max: Annotated[float, Gt(0)] = 1e-2
    """kl_adaptive: largest learning rate."""
    beta1: Annotated[float, Below(0, 1)] = 0.9
    """Decay of Adam's first moment."""
    beta2: Annotated[float, Below(0, 1)] = 0.999
    """Decay of Adam's second moment."""
    eps: Annotated[float, Gt(0)] = 1e-5
    """Adam's epsilon."""
    max_grad_norm: Annotated[float, Ge(0)] = 0.5
    """Scale gradients down to at most this norm; 0: no limit."""
    adam_rel: bool = False
    """Adam-Rel: in every update, count Adam's steps from 0 again, by which it corrects its moments."""
    sfpo_steps: Annotated[int, Between(0, 100)] = 0
    """SFPO: fast passes over the batch, after which the weights are partly pulled back and one more pass follows. More:
    a better direction, and as many more passes per update. 0: off. Needs batch.epochs 1."""
    sfpo_alpha: Annotated[float, Between(0, 1)] = 0.8
    """SFPO: share of the way of the fast passes that the weights keep."""
    sfpo_window: Annotated[int, Between(2, 10_000)] = 30
    """SFPO: updates whose entropies the newest one is compared with."""
    sfpo_threshold: Annotated[float, Gt(0)] = 1.0
    """SFPO: standard deviations above the mean entropy at which the fast passes stop for the rest of the run."""


@dataclass(frozen=True)
class Model:
    """The network."""

    encoder: Annotated[str, ENCODER] = "auto"
    """auto (by shape, dtype and bounds of each observation; the choice is printed), mlp, cnn (pictures from 12 pixels),
    nature (from 36), impala, minatar (small grids), or your own as module:Class. Where a shape does not say which axes
    are the picture, nature, cnn and impala read channels first, minatar channels last; mlp takes it as a vector."""
    network: Annotated[str, NETWORK] = ""
    """A whole actor-critic network of your own as module:Class, in place of all layers: without encoder, hidden,
    activation, layer_norm, separate and core. It needs algorithm.name actor_critic. Empty: none."""
    hidden: Annotated[tuple[int, ...], Each(Between(1, 65_536))] = (128,)
    """Widths of the fully connected layers."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation function."""
    layer_norm: bool = False
    """LayerNorm before each activation; in convolutions over the channels at each position. Encoders of your own have
    none, and impala has it in its fully connected layers only."""
    core: Literal["none", "gru", "lstm"] = "none"
    """Recurrent core: memory between steps. gru and lstm cost time and need complete lanes per minibatch."""
    core_size: Annotated[int, Between(1, 65_536)] = 128
    """Width of the recurrent core."""
    separate: bool = False
    """Separate networks for actor and critic. About twice the time and memory."""
    log_std_init: Annotated[float, Between(-20, 20)] = 0.0
    """Continuous actions: initial logarithm of the standard deviation."""
    squash: bool = False
    """Continuous actions: tanh of the sample, scaled to the bounds, instead of clipping to them."""
    pooling: Literal["none", "average"] = "none"
    """impala: average pools each channel over the picture after the last convolution (Impoola, arXiv 2503.05546). Fewer
    weights, and less knowledge of where things are in the picture."""
    value_head: Literal["scalar", "hl_gauss"] = "scalar"
    """scalar: the value is one number, trained by its squared error. hl_gauss: it is the expectation over bins, trained
    by cross-entropy (arXiv 2403.03950); torch computes the network. Not with dae, ppg, pqn or loss.value_clip."""
    value_bins: Annotated[int, Between(2, 4096)] = 151
    """hl_gauss: number of bins. More: finer values, a larger head."""
    value_low: Annotated[float, AnyNumber()] = -10.0
    """hl_gauss: lower end of the bins: in standard deviations from the mean with normalize.value_targets, otherwise in
    units of the rewards that are learned from. Targets outside count as the nearest end (losses/value_outside)."""
    value_high: Annotated[float, AnyNumber()] = 10.0
    """hl_gauss: upper end of the bins, in the same units. A wider range: coarser values."""

    @property
    def reader(self) -> str:
        """What reads the observations: the network of the user's own, or else the encoder."""
        return self.network or self.encoder

    @property
    def own_code(self) -> tuple[str, str]:
        """The setting that names a network of the user's own, and its value; both empty if there is none."""
        if self.network:
            return "model.network", self.network
        return ("model.encoder", self.encoder) if ":" in self.encoder else ("", "")


@dataclass(frozen=True)
class Normalize:
    """Normalization of inputs and targets. The statistics are saved and published with the weights."""

    obs: bool = False
    """Numbers to zero mean and unit variance, clipped at +-10: floats, integers and bytes. Pictures with bounds are
    scaled to 0..1 instead. False: integers with bounds are scaled to -1..1, floats stay as they are."""
    value_targets: bool = False
    """Value targets to mean 0 and variance 1 (PopArt, arXiv 1809.04474), for any scale of rewards."""
    reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, then clip them at +-10."""
    advantage: bool = True
    """Advantages to zero mean and unit variance over the valid steps of each update."""
    advantage_span: Annotated[float, Ge(1)] = 1.0
    """Updates over which the advantage statistics are averaged; 1: each update alone."""


@dataclass(frozen=True)
class SelfPlay:
    """Opponents from a pool of earlier policies, in environments with several agents."""

    share: Annotated[float, Between(0, 1)] = 0.0
    """Share of episodes in which one agent is the policy that learns and all others are an opponent from the pool, who
    does not learn. In the other episodes all agents are the policy that learns. 0: there is no pool."""
    pool: Annotated[int, Between(1, 1000)] = 16
    """Earlier policies in the pool. With more, one between the oldest and the newest leaves: the one whose neighbors
    are closest in time."""
    games: Annotated[int, Ge(1)] = 200
    """Games against the pool that decide whether the policy is admitted, and that selfplay/score is the mean of."""
    admit: Annotated[float, Between(0, 1)] = 0.6
    """Mean score of these games (win 1, draw 0.5) above which the policy is admitted to the pool."""
    every: Annotated[int, Ge(1)] = 1_000_000
    """Trained steps (of agents) after which the policy is admitted at the latest, whatever its score."""
    initial: bool = False
    """Begin with the initial weights in the pool, which play at random."""
    opponents: str = ""
    """Other runs that play in the pool from the start, as RUN or RUN/checkpoints/STEPS, with commas."""

    @property
    def opponent_paths(self) -> tuple[str, ...]:
        """Folders of `opponents`."""
        return _listed(self.opponents)


@dataclass(frozen=True)
class Checkpoint:
    """What is saved to disk."""

    every_seconds: Annotated[float, Ge(0)] = 60.0
    """Seconds between checkpoints: at most this much training is lost in a power cut."""
    keep: Annotated[int, Ge(1)] = 3
    """Newest good checkpoints kept. The one with the best training return (of 100 episodes or more) is kept as well."""
    milestones: Annotated[int, Ge(0)] = 0
    """Trained steps (with several agents: of agents) between checkpoints that are never deleted, for policies of
    different ages. 0: none. async: training does not wait for the disk, so that one is left out if the next one is due
    before an earlier checkpoint is written."""
    exact: bool = True
    """Lockstep: save the environments too, so that a resume is exact; an error where they cannot be saved."""


@dataclass(frozen=True)
class Eval:
    """Evaluation during training, on complete episodes in separate environments (metrics eval/*)."""

    every: Annotated[int, Ge(0)] = 0
    """Trained steps (with several agents: of agents) between evaluations; 0: none. async: a separate process plays a
    checkpoint written for it."""
    episodes: Annotated[int, Ge(1)] = 20
    """Episodes per evaluation and task, always from the same seeds. More: less noise, later results."""
    greedy: bool = False
    """Play the most likely action instead of a sampled one."""
    num_envs: Annotated[int, Between(0, 1_000_000)] = 0
    """Environments that play at the same time, also in `sfactory eval`. 0: 32, but not more than training has."""
    video: bool = False
    """Also play one episode of each task, which TensorBoard shows under images (run tb/videos): at most 150 pictures of
    its first 3,000 steps, about 0.1 to 1 MB, in at most 20 s. Needs the extra video and environments that can be
    rendered."""


@dataclass(frozen=True)
class Log:
    """What is reported."""

    every_seconds: Annotated[float, Ge(0)] = 5.0
    """Seconds between rows of metrics (async). Fewer: finer curves, larger files."""
    every_updates: Annotated[int, Ge(1)] = 20
    """Updates between rows of metrics (lockstep, where results must not depend on time)."""
    episodes: bool = False
    """Write episodes.csv, a line for every complete episode: its number, the trained env steps and seconds at its end,
    task, return, length, numbers of `info`. About 50 bytes per episode."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the extra wandb). The settings below win over its environment variables, and
    these over the defaults. Its charts are over env_steps. It cannot remove rows: after a resume from an older
    checkpoint, those that were sent after that checkpoint stay beside the new ones, and the log says which."""
    wandb_project: str = ""
    """Project. Empty: WANDB_PROJECT, or sfactory."""
    wandb_name: str = ""
    """Name of the run. Empty: WANDB_NAME, or the name of the run folder."""
    wandb_group: str = ""
    """Group, for example of the seeds of one experiment. Empty: WANDB_RUN_GROUP, or none."""
    wandb_tags: str = ""
    """Tags, with commas. Empty: WANDB_TAGS, or none."""
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """offline: only files in the run folder, for `wandb sync`. auto: WANDB_MODE, or online."""
    console_seconds: Annotated[float, Ge(0)] = 10.0
    """Seconds between lines of progress where stderr is not a terminal."""
    quiet: bool = False
    """No progress on the console."""


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run: Run = field(default_factory=Run)
    stop: Stop = field(default_factory=Stop)
    env: Env = field(default_factory=Env)
    sampling: Sampling = field(default_factory=Sampling)
    batch: BatchConfig = field(default_factory=BatchConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    dae: DaeConfig = field(default_factory=DaeConfig)
    ppg: PpgConfig = field(default_factory=PpgConfig)
    pqn: PqnConfig = field(default_factory=PqnConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    proximal: ProximalConfig = field(default_factory=ProximalConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: Optim = field(default_factory=Optim)
    model: Model = field(default_factory=Model)
    normalize: Normalize = field(default_factory=Normalize)
    selfplay: SelfPlay = field(default_factory=SelfPlay)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    eval: Eval = field(default_factory=Eval)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            if isinstance(getattr(self, section.name), Mapping):
                raise ValueError(f"{section.name}: a Config takes objects; sfactory.make_config makes one of dicts")
        check_bounds(self)
        check_together(self)

    @property
    def training_envs(self) -> int:
        """Environments that train, after `batch.factor`; they have the numbers (`env_index`) from 0 on."""
        return math.ceil(self.sampling.num_envs / self.batch.factor)

    def index_beside(self, world_size: int = 1) -> int:
        """First number (`env_index`) of environments that are built beside a run, for example by `sfactory eval`.

        world_size: ranks that train. The numbers in between belong to the evaluations of the run itself.
        """
        return world_size * self.training_envs + max(EVALUATION_ENVS, self.eval.num_envs)

    def task_of(self, group: int) -> int:
        """Index into `env.tasks` of the environments of a group."""
        return group % len(self.env.tasks)

    @property
    def batch_slots(self) -> int:
        """Slots per update."""
        return self.batch.slots or self.sampling.num_groups

    @property
    def lanes(self) -> int:
        """Environments in one batch (B)."""
        return self.batch_slots * self.sampling.envs_per_group

    @property
    def batch_rows(self) -> int:
        """Rows of one update: T x B, reset rows included."""
        return self.sampling.rollout_length * self.lanes

    @property
    def replayed_slots(self) -> int:
        """Slots that an update trains on again, beside its fresh ones."""
        return round(self.replay.ratio * self.batch_slots)

    @property
    def replayed_lanes(self) -> int:
        """Environments in the replayed slots of one batch."""
        return self.replayed_slots * self.sampling.envs_per_group

    @property
    def held_slots(self) -> int:
        """Slots that the learner holds for replay."""
        return self.replay.max_age * self.batch_slots if self.replay.ratio else 0

    @property
    def trained_rows(self) -> int:
        """Rows that one update trains on, replayed ones included."""
        return self.sampling.rollout_length * (self.lanes + self.replayed_lanes)

    @property
    def optimizer_steps_per_update(self) -> int:
        """Steps of the epochs: without the fast passes of SFPO and the auxiliary phases of PPG."""
        return self.batch.epochs * self.batch.minibatches

    @property
    def passes_over_batch(self) -> int:
        """Passes with optimizer steps over a batch, in the mean: epochs, fast passes (SFPO), auxiliary epochs (PPG)."""
        auxiliary = self.ppg.phase_epochs if rules_of(self).keeps_batches else 0
        return self.batch.epochs + self.optim.sfpo_steps + auxiliary

    @property
    def starts_with_forward_pass(self) -> bool:
        """Whether an update computes the outputs of the whole batch before its first optimizer step."""
        return self.optimizer_steps_per_update > 1 or self.optim.sfpo_steps > 0


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The settings as a plain nested dict, as written to TOML and JSON."""
    return dataclasses.asdict(config)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """A copy with some settings changed, by dotted name (`{"optim.lr": 1e-3}`); old names are accepted.

    Values are used as they are. Raises ValueError where the result breaks a bound or a rule.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = current_name(name).partition(".")
        sections.setdefault(section, {})[key] = value
    changed = {name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    return dataclasses.replace(config, **changed)


def _listed(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
