"""The command `sfactory`: parse, call, say how it ended. Thin.

Nothing heavy is imported before a verb needs it: spawned workers import the main module anew, and
`import torch` would cost every sampler 1.5 s and a few hundred MB.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sfactory._version import __version__
from sfactory.exits import Ended, Exit, last_line, resume_command, told

if TYPE_CHECKING:
    from sfactory.config import Config
    from sfactory.presets import Layer

HELP = """\
sfactory: train a policy as fast as one machine allows

  sfactory train  TARGET [--section.field value ...]    TARGET: a preset, or FAMILY/ID
  sfactory resume runs/NAME [--section.field value ...] go on from the newest checkpoint
  sfactory eval   runs/NAME [--episodes 100] [--greedy] play whole games with the newest checkpoint
  sfactory verify-resume TARGET                         kill, resume, and compare bit for bit
  sfactory presets                                      what comes with settings that work
  sfactory envs                                         environment families, and what to install for them
  sfactory --version

sfactory VERB --help says more. To begin:  sfactory train minatar/breakout
"""

TRAIN_HELP = """\
sfactory train TARGET [--section.field value ...]

  sfactory train minatar/breakout                        a preset
  sfactory train gymnasium/CartPole-v1                   any environment of an installed family
  sfactory train minatar/breakout --config my.toml       file over preset; flags win over both
  sfactory train minatar/breakout --optim.lr 1e-3 --stop.env-steps 50k --run.seed 3

  --config FILE                TOML with [sections]; may be given several times
  --print-config               print the resolved settings as TOML, start nothing
  --json                       print how the run ended as JSON on stdout
  --quiet                      no progress
  --help-all                   every setting with its meaning

  --run.dir DIR                folder of the run               (runs/<preset>_s<seed>_<date-time>)
  --run.seed N                 seed                            (1)
  --run.mode async|lockstep    as fast as can be, or deterministic
  --stop.env-steps N           trained steps                   (10M and 50k are numbers)
  --stop.seconds S, --stop.target-return R                     other ways to be finished
  --sampling.num-samplers N    processes that step environments
  --sampling.envs-per-group N  environments stepped together
  --optim.lr X                 learning rate
  --env.settings.KEY VALUE     setting of the environment itself
"""

RESUME_HELP = """\
sfactory resume runs/NAME [--section.field value ...]

Goes on from the newest usable checkpoint with the settings in runs/NAME/config.toml. Flags change them:

  sfactory resume runs/NAME --stop.env-steps 50M

Environment and network stay what they were (exit 4 lists the differences). --allow FIELD accepts one all the
same, for example --allow env.settings. --config, --json, --quiet, --print-config, --help-all: as in `train`.
"""

EVAL_HELP = """\
sfactory eval runs/NAME [options]

Plays whole games with the newest checkpoint in environments of their own. Nothing is written.

  --episodes N      games (100)
  --greedy          the likeliest action instead of a sampled one
  --max-steps N     a game is cut here and counts with its return so far (10000)
  --seed N          seed of environments and sampling (0)
  --json            everything as one JSON object on stdout
"""

VERIFY_HELP = """\
sfactory verify-resume TARGET [--section.field value ...]

Trains TARGET twice in lockstep: straight through, and killed with SIGKILL at random moments and resumed.
Exit 0: weights, optimizer, averages, normalisers and metrics are the same, bit for bit. Exit 1: what differs.

  --steps N         length of both runs in env steps (20000)
  --kills N         how often the second is killed (3)
  --seed N          of the runs and of the moments (1)
"""

COMMON = {"--config": True, "--print-config": False, "--json": False, "--quiet": False, "--help-all": False}
FIXED = (
    "env.name",
    "env.protocol",
    "env.settings",
    "model.",
    "normalize.obs",
    "normalize.reward",
    "run.mode",
)
"""What a resume may not change: the task, the network, and what the checkpoint's statistics belong to. In lockstep the
sampling neither: the checkpoint holds every group where it stood."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Always leaves through sys.exit; the last line on stderr says how it ended."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(args)
    except Ended as end:
        code = last_line(end.code, end.code.outcome, end.sentence)
    except BrokenPipeError:  # `sfactory presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = last_line(Exit.INTERRUPTED, Exit.INTERRUPTED.outcome, "stopped before anything was trained")
    except Exception as error:
        code = last_line(*told(error))
    sys.exit(code)


def _dispatch(args: list[str]) -> int:
    verb, rest = (args[0], args[1:]) if args else ("--help", [])
    if verb in ("--version", "-V"):
        print(f"sfactory {__version__}")
        return 0
    if verb in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if verb not in VERBS:
        from sfactory.presets import suggestion

        hint = suggestion(verb, VERBS)
        if "/" in verb:
            hint = f"; did you mean sfactory train {verb}?"
        raise Ended(Exit.USAGE, f"{verb}: no such verb{hint}; there are {', '.join(VERBS)}")
    text, run = VERBS[verb]
    if "--help" in rest or "-h" in rest:
        print(text, end="")
        return 0
    return run(rest)


# -- verbs ---------------------------------------------------------------------------------------------------


def train(args: list[str]) -> int:
    """A new run."""
    from sfactory import presets

    flags, own, positionals = presets.split_flags(args, COMMON)
    if "--help-all" in own:
        print(presets.all_options(), end="")
        return 0
    target = _one(positionals, "TARGET", optional=True)
    if (Path(target) / "config.toml").is_file():
        raise Ended(Exit.USAGE, f"{target} is a run; go on with it: {resume_command(Path(target))}")
    files = [Path(name) for name in own.get("--config", [])]
    config = presets.build(*presets.target_layers(target, files), _quietly(flags, own))
    if "--print-config" in own:
        return _print_config(config)
    run_dir = Path(config.run.dir) if config.run.dir else _new_folder(target or config.env.name, config.run.seed)
    if config.run.requeue and not config.run.dir:
        raise Ended(Exit.USAGE, "run.requeue needs run.dir: the same command must find the same run again")
    if config.run.requeue and (run_dir / "config.toml").is_file():  # the scheduler started the same command again
        _refuse_changes(presets.build(presets.read_toml(_settings_of(run_dir))), config, [])
        _need_checkpoint(run_dir)
        return _run(config, run_dir, resume=True, as_json="--json" in own)
    if run_dir.exists():
        what = "holds a run already" if (run_dir / "config.toml").is_file() else "exists already"
        hint = f"resume it: {resume_command(run_dir)}; or" if (run_dir / "config.toml").is_file() else "please"
        raise Ended(Exit.USAGE, f"{run_dir} {what}; {hint} choose another --run.dir")
    _check_wandb(config)
    return _run(config, run_dir, resume=False, as_json="--json" in own)


def resume(args: list[str]) -> int:
    """Go on with a run."""
    from sfactory import presets

    flags, own, positionals = presets.split_flags(args, {**COMMON, "--allow": True})
    if "--help-all" in own:
        print(presets.all_options(), end="")
        return 0
    run_dir = Path(_one(positionals, "runs/NAME"))
    file = _settings_of(run_dir)
    before = presets.build(presets.read_toml(file))
    files = [presets.read_toml(Path(name)) for name in own.get("--config", [])]
    config = presets.build(presets.read_toml(file), *files, _quietly(flags, own))
    if "--print-config" in own:
        return _print_config(config)
    _need_checkpoint(run_dir)
    _refuse_changes(before, config, own.get("--allow", []))
    _check_wandb(config)
    return _run(config, run_dir, resume=True, as_json="--json" in own)


def evaluate(args: list[str]) -> int:
    """Play games with the newest policy."""
    from sfactory import presets
    from sfactory.evaluate import evaluate as play

    numbers = {"--episodes": 100, "--max-steps": 10_000, "--seed": 0}
    options = {**dict.fromkeys(numbers, True), "--greedy": False, "--json": False}
    flags, own, positionals = presets.split_flags(args, options)
    if flags:
        raise Ended(
            Exit.USAGE,
            f"{presets.shown(next(iter(flags)))}: eval plays with the settings of the run; see --help",
        )
    count = {
        name: presets.whole(own[name][-1], name.lstrip("-")) if name in own else default
        for name, default in numbers.items()
    }
    if count["--episodes"] < 1 or count["--max-steps"] < 1 or count["--seed"] < 0:
        raise Ended(Exit.USAGE, "episodes and max-steps must be at least 1, and seed at least 0")
    run_dir = Path(_one(positionals, "runs/NAME"))
    _settings_of(run_dir)
    _need_checkpoint(run_dir)
    result = play(run_dir, count["--episodes"], "--greedy" in own, count["--max-steps"], count["--seed"])
    print(json.dumps(result.as_dict()) if "--json" in own else result.report())
    return last_line(
        Exit.FINISHED,
        "evaluated",
        f"{len(result.returns)} games, mean return {result.statistics['mean']:.2f}",
    )


def list_presets(args: list[str]) -> int:
    """Names, environments, what they are."""
    from sfactory.presets import presets

    _nothing_else(args)
    found = presets()
    widths = max(len(p.name) for p in found), max(len(p.env) for p in found)
    for preset in found:
        print(f"{preset.name:{widths[0]}}  {preset.env:{widths[1]}}  {preset.description}")
    print("\nsfactory train PRESET starts one; sfactory train PRESET --print-config shows its settings.")
    return 0


KNOWN = {  # family -> (module it needs, extra that brings it, ids)
    "minatar": ("minatar", "minatar", "minatar/breakout minatar/seaquest"),
    "gymnasium": ("gymnasium", "", "gymnasium/CartPole-v1 gymnasium/Pendulum-v1"),
    "atari": ("ale_py", "atari", "atari/pong atari/breakout"),
    "envpool": ("envpool", "envpool", "envpool/Pong-v5"),
}


def list_envs(args: list[str]) -> int:
    """Environment families; nothing of them is imported."""
    from importlib.util import find_spec

    from sfactory.presets import ENV_GROUP, families

    _nothing_else(args)
    for family in families():
        module, extra, examples = KNOWN.get(family, ("", "", ""))
        if family == "faults":
            state, examples = "for tests", "environments that fail on demand"
        elif module and find_spec(module) is None:
            state = f"pip install 'sfactory[{extra}]'"
        else:
            state = "installed"
        print(f"{family:12} {state:34} {examples or f'{family}/ID'}".rstrip())
    print(f"\nYour own: an entry point of the group {ENV_GROUP} in your package, then sfactory train FAMILY/ID.")
    return 0


def verify(args: list[str]) -> int:
    """Kill and resume, and compare."""
    from sfactory import presets
    from sfactory.verify_resume import RunFailed, verify_resume

    numbers = {"--steps": 20_000, "--kills": 3, "--seed": 1}
    flags, own, positionals = presets.split_flags(args, dict.fromkeys(numbers, True))
    count = {
        name: presets.whole(own[name][-1], name.lstrip("-")) if name in own else default
        for name, default in numbers.items()
    }
    target = _one(positionals, "TARGET")
    presets.build(*presets.target_layers(target), flags)  # mistakes are answered here, before anything runs
    values = {name: given.value for name, given in flags.items()}
    words = [
        f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in values.items()
    ]
    try:
        found = verify_resume([target, *words], count["--steps"], count["--kills"], count["--seed"], print)
    except RunFailed as error:
        raise Ended(Exit.USAGE, f"nothing was verified: {error}") from error
    if found:
        print("not the same:", *found, sep="\n  ")
        return last_line(Exit.BUG, "not exact", f"{target} killed {count['--kills']} times and resumed differs")
    return last_line(Exit.FINISHED, "exact", f"{target}, killed {count['--kills']} times and resumed, is the same run")


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": (TRAIN_HELP, train),
    "resume": (RESUME_HELP, resume),
    "eval": (EVAL_HELP, evaluate),
    "verify-resume": (VERIFY_HELP, verify),
    "presets": ("sfactory presets: what comes with settings that work\n", list_presets),
    "envs": ("sfactory envs: environment families, and what to install for them\n", list_envs),
}


# -- steps of a verb -----------------------------------------------------------------------------------------


def _run(config: Config, run_dir: Path, *, resume: bool, as_json: bool) -> int:
    """Train, then say what was reached and what can be done next."""
    from sfactory.workers import supervisor

    outcome = supervisor.train(config, run_dir, resume=resume)
    code = Exit(outcome.code)
    if as_json:
        print(json.dumps({"run_dir": str(run_dir), **vars(outcome)}))
    elif code is Exit.FINISHED:
        reached = getattr(outcome, "training_return", None)
        print(f"\ntrained {outcome.env_steps:,} steps of {config.env.name}" + (
            f"; training return {reached:.2f} (mean of the last 100 games)" if reached is not None else ""
        ))  # fmt: skip
        print(f"  run         {run_dir}")
        print(f"  evaluate    sfactory eval {shlex.quote(str(run_dir))}")
        further = 2 * max(outcome.env_steps, config.stop.env_steps)
        print(f"  go on       {resume_command(run_dir)} --stop.env-steps {further}")
        print(f"  curves      tensorboard --logdir {shlex.quote(str(run_dir))}")
    sys.stdout.flush()
    return last_line(code, outcome.name, outcome.sentence, outcome.checkpoint, outcome.env_steps, run_dir)


def _refuse_changes(before: Config, after: Config, allowed: Sequence[str]) -> None:
    """Exit 4 with a table of what cannot change in the middle of a run."""
    from sfactory.config import to_dict
    from sfactory.presets import shown

    old, new = to_dict(before), to_dict(after)
    names = [(section, key) for section in old for key in old[section] if old[section][key] != new[section][key]]
    changed = {shown(f"{section}.{key}"): (old[section][key], new[section][key]) for section, key in names}
    fixed = (*FIXED, "sampling.", "learning.forced-lag") if before.run.mode == "lockstep" else FIXED
    refused = {n: v for n, v in changed.items() if n.startswith(fixed) and n not in allowed}
    for name, (was, asked) in refused.items():
        print(f"  {name:24} {was!r} -> {asked!r}", file=sys.stderr)
    if refused:
        rest = "start a new run with `sfactory train`, or say --allow " + " --allow ".join(refused)
        raise Ended(Exit.RESUME_REFUSED, f"{', '.join(refused)} cannot change in the middle of a run; {rest}")


def _need_checkpoint(run_dir: Path) -> None:
    from sfactory.checkpoint import candidates

    if candidates(run_dir):
        return
    if any((run_dir / "corrupt").glob("*")):
        damaged = f"every checkpoint of {run_dir} is damaged; they lie in {run_dir / 'corrupt'}"
        raise Ended(Exit.NO_USABLE_CHECKPOINT, damaged)
    raise Ended(Exit.USAGE, f"{run_dir} holds no checkpoint yet; start anew with `sfactory train`")


def _settings_of(run_dir: Path) -> Path:
    file = run_dir / "config.toml"
    if not file.is_file():
        what = "holds no run (no config.toml)" if run_dir.is_dir() else "does not exist"
        others = sorted(p.parent for p in Path("runs").glob("*/config.toml"))
        hint = f"; the newest run here is {max(others, key=lambda p: p.stat().st_mtime)}" if others else ""
        raise Ended(Exit.USAGE, f"{run_dir} {what}{hint}")
    return file


def _one(positionals: list[str], what: str, optional: bool = False) -> str:
    if len(positionals) == 1 or (optional and not positionals):
        return positionals[0] if positionals else ""
    got = "none" if not positionals else " ".join(positionals)
    raise Ended(Exit.USAGE, f"expected one {what}, got {got}; settings are written --section.field value")


def _nothing_else(args: list[str]) -> None:
    if args:
        raise Ended(Exit.USAGE, f"{args[0]}: this verb takes no arguments")


def _quietly(flags: Layer, own: dict[str, list[str]]) -> Layer:
    from sfactory.presets import Given

    return {**flags, "log.quiet": Given("true")} if "--quiet" in own else flags


def _print_config(config: Config) -> int:
    from sfactory.settings_file import to_toml

    print(to_toml(config), end="")
    return 0


def _new_folder(target: str, seed: int) -> Path:
    """runs/<preset>_s<seed>_<date-time>, with a number behind it for runs of the same second."""
    name = f"{target.replace('/', '-')}_s{seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _check_wandb(config: Config) -> None:
    from importlib.util import find_spec

    if config.log.wandb and find_spec("wandb") is None:
        raise Ended(Exit.USAGE, "log.wandb needs a package that is not installed: pip install 'sfactory[wandb]'")
