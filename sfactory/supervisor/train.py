"""Train in a run folder: check the settings, open the record, run the workers, write the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfactory.config import Config
from sfactory.config.presets import several_agents_note
from sfactory.device.machine import cores
from sfactory.device.ranks import ALONE, Ranks
from sfactory.envs import EnvSpec, bounded
from sfactory.errors import UNGUARDED, CommandError, Exit
from sfactory.learning.batch_fields import replay_line
from sfactory.learning.batch_scaling import rescale_batch
from sfactory.model.treatment import cost_lines, obs_lines
from sfactory.monitor.wandb_output import check_wandb
from sfactory.native.library import build_in_background
from sfactory.play.eval_video import check_eval_video
from sfactory.run.callbacks import Callbacks
from sfactory.run.job import settings_of_rank
from sfactory.run.opponent_rules import check_self_play
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.run.stop_rules import agent_lines
from sfactory.run.trust import kept_code, record_run
from sfactory.supervisor.affinity import keep_to_nodes
from sfactory.supervisor.cores import by_cores, share_threads, summary
from sfactory.supervisor.limits import check_file_size, check_limits
from sfactory.supervisor.lockstep_process import run_lockstep
from sfactory.supervisor.main_script import UnguardedError
from sfactory.supervisor.network_check import check_own_network
from sfactory.supervisor.preflight import (
    check_algorithm,
    check_continuous,
    check_device,
    check_init_from,
    check_objective,
    check_own_code,
)
from sfactory.supervisor.process_signals import exits_are_reported
from sfactory.supervisor.signals import Signals, requeue_job
from sfactory.supervisor.specs import check_rendering, read_specs
from sfactory.supervisor.supervisor import run_workers
from sfactory.workers.shared import RunSpec

NO_CALLBACKS = Callbacks()


def train(
    config: Config,
    run_dir: Path,
    resume: bool = False,
    ranks: Ranks = ALONE,
    callbacks: Callbacks = NO_CALLBACKS,
    notes: Sequence[str] = (),
) -> Outcome:
    """Train in `run_dir`, from its newest checkpoint if `resume`; return how the run ended.

    ranks: the place of this process in a job of several learners. callbacks: called while it trains. notes: lines about
    the settings, which are logged first.

    Raises ValueError, EnvError or RunBusy for wrong arguments, before anything is written.
    """
    with exits_are_reported():
        return _train(settings_of_rank(config, ranks), run_dir, resume, ranks, callbacks, notes)


def _train(
    config: Config, run_dir: Path, resume: bool, ranks: Ranks, callbacks: Callbacks, notes: Sequence[str]
) -> Outcome:
    if callbacks and not ranks.alone:
        raise CommandError(Exit.USAGE, "callbacks are for runs with one learner: learners stop and save together")
    keep_to_nodes(ranks)
    num_cores = ranks.share(cores())
    if config.run.kernels in ("auto", "native"):
        build_in_background()
    _check_machine(config)
    try:
        specs = read_specs(config, ranks)
        check_rendering(config, ranks)
    except UnguardedError:
        return Outcome("unguarded", UNGUARDED, "the script that trains has no guard")
    reading = _check_environment(config, specs[0], resume)
    check_own_network(config, specs[0], ranks)
    config, given = by_cores(config, num_cores), config
    scaled, lines = rescale_batch(config, ranks.world_size, specs[0].rows)
    if config != given and config.run.mode != "lockstep":
        lines = [summary(scaled, num_cores), *lines]
    scaled = share_threads(scaled, ranks, num_cores)
    folder = Path(run_dir).resolve()  # the current folder may be removed before the end
    own_folder = str(ranks.folder(folder))
    planned = RunSpec(scaled, specs[0], own_folder, 0)
    check_limits(planned)
    if line := replay_line(scaled, planned.schema, specs[0].acting):
        lines = [*lines, line]
    # Signals first: once the folder says that a run is under way, a signal ends it in order.
    with (
        Signals(config.run.requeue, ranks.alone) as signals,
        RunRecorder.open(config, folder, resume, specs, ranks) as recorder,
        kept_code(Path(run_dir), config),
    ):
        record_run(Path(run_dir), config)
        for line in [*notes, *reading, *lines]:
            recorder.writers.log(line)
        run_spec = RunSpec(scaled, specs[0], own_folder, recorder.launch, recorder.resume_from, ranks)
        callbacks.begin(Path(run_dir), config, signals.request_save, recorder.writers.log, recorder.resume_from)
        recorder.callbacks = callbacks
        if config.run.mode == "lockstep":
            outcome = run_lockstep(run_spec, recorder, signals)
        else:
            outcome = run_workers(run_spec, recorder, signals)
        outcome.run_dir, outcome.rank = str(run_dir), ranks.rank
        callbacks.end()
        callbacks.amend(outcome)
        recorder.finish(outcome)
        if callbacks.amend(outcome):  # by a row that was written there
            recorder.finish(outcome)
        if outcome.checkpoint:
            outcome.checkpoint = str(run_dir / Path(outcome.checkpoint).relative_to(folder))
        if outcome.code == Exit.REQUEUE and ranks.is_leader:  # last of all: the scheduler may kill this process at once
            recorder.writers.log(requeue_job())
        return outcome


def _check_machine(config: Config) -> None:
    """Raise ValueError or CommandError for settings that this machine, or what is installed on it, does not allow."""
    check_file_size(0)  # before the first shared memory
    check_own_code("model.encoder", config.model.encoder)
    check_own_code("model.network", config.model.network)
    check_device("run.device", config.run.device)
    check_device("run.inference-device", config.run.inference_device)
    check_wandb(config)
    check_eval_video(config)


def _check_environment(config: Config, spec: EnvSpec, resume: bool) -> list[str]:
    """Return lines about how the environment is read. Raises ValueError or CommandError if settings do not fit it."""
    lines = agent_lines(spec, config)
    if spec.agents and not resume and (note := several_agents_note(config)):
        lines.append(note)
    lines += obs_lines(spec, config) + cost_lines(spec, config)  # raises for observations that cannot be read
    bounded(spec, config.model.squash)  # raises for actions that cannot be squashed
    check_algorithm(config.algorithm.name, spec)
    check_objective(config.surrogate.objective, spec)
    check_self_play(config, spec)
    if not resume:
        check_continuous(config, spec)  # a run may have recorded it
    if config.run.init_from and not resume:
        check_init_from(config, spec)
    return lines
