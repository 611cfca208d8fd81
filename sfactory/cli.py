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

from sfactory import help as texts
from sfactory._version import __version__
from sfactory.exits import Ended, Exit, last_line, resume_command, told

if TYPE_CHECKING:
    from sfactory.config import Config
    from sfactory.settings import Layer

COMMON = {"--config": True, "--print-config": False, "--json": False, "--quiet": False, "--help-all": False}
FIXED = (
    "env.name",
    "env.protocol",
    "env.settings",
    "model.",
    "normalize.obs",
    "normalize.reward",
    "normalize.value-targets",
    "run.mode",
)
"""What a resume may not change: the task, the network, and what the checkpoint's statistics belong to. In lockstep the
sampling neither: the checkpoint holds every group where it stood."""

FREE = ("run.", "stop.", "log.", "checkpoint.", "sampling.", "env.step-timeout", "env.fault-budget")
"""What a resume may change without a word. Everything else is told: the curve goes on under another setting."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Always leaves through sys.exit; the last line on stderr says how it ended."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a user's own encoder lies where they stand; last, so that it hides nothing
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
        print(texts.HELP, end="")
        return 0
    if verb not in VERBS:
        from sfactory.settings import suggestion

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
    from sfactory import presets, settings

    flags, own, positionals = presets.split_flags(args, COMMON)
    if "--help-all" in own:
        print(settings.all_options(), end="")
        return 0
    target = _one(positionals, "TARGET", optional=True)
    if (Path(target) / "config.toml").is_file():
        raise Ended(Exit.USAGE, f"{target} is a run; go on with it: {resume_command(Path(target))}")
    files = [Path(name) for name in own.get("--config", [])]
    config = settings.build(*presets.target_layers(target, files), _quietly(flags, own))
    if "--print-config" in own:
        return _print_config(config)
    run_dir = Path(config.run.dir) if config.run.dir else _new_folder(target or config.env.name, config.run.seed)
    if config.run.requeue and not config.run.dir:
        raise Ended(Exit.USAGE, "run.requeue needs run.dir: the same command must find the same run again")
    if config.run.requeue and (run_dir / "config.toml").is_file():  # the scheduler started the same command again
        _refuse_changes(settings.build(presets.read_toml(_settings_of(run_dir))), config, [])
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
    from sfactory import presets, settings

    flags, own, positionals = presets.split_flags(args, {**COMMON, "--allow": True})
    if "--help-all" in own:
        print(settings.all_options(), end="")
        return 0
    run_dir = Path(_one(positionals, "runs/NAME"))
    file = _settings_of(run_dir)
    before = settings.build(presets.read_toml(file))
    files = [presets.read_toml(Path(name)) for name in own.get("--config", [])]
    config = settings.build(presets.read_toml(file), *files, _quietly(flags, own))
    if "--print-config" in own:
        return _print_config(config)
    _need_checkpoint(run_dir)
    _refuse_changes(before, config, own.get("--allow", []))
    _check_wandb(config)
    return _run(config, run_dir, resume=True, as_json="--json" in own)


def evaluate(args: list[str]) -> int:
    """Play games with the newest policy."""
    from sfactory import presets, settings
    from sfactory.evaluate import evaluate as play

    numbers = {"--episodes": 100, "--max-steps": 0, "--seed": 0}
    options = {**dict.fromkeys(numbers, True), "--greedy": False, "--json": False}
    flags, own, positionals = presets.split_flags(args, options)
    if flags:
        raise Ended(
            Exit.USAGE,
            f"{settings.shown(next(iter(flags)))}: eval plays with the settings of the run; see --help",
        )
    count = {
        name: settings.whole(own[name][-1], name.lstrip("-")) if name in own else default
        for name, default in numbers.items()
    }
    if count["--episodes"] < 1 or count["--seed"] < 0 or ("--max-steps" in own and count["--max-steps"] < 1):
        raise Ended(Exit.USAGE, "episodes and max-steps must be at least 1, and seed at least 0")
    run_dir = Path(_one(positionals, "runs/NAME"))
    _settings_of(run_dir)
    _need_checkpoint(run_dir)
    result = play(run_dir, count["--episodes"], "--greedy" in own, count["--max-steps"], count["--seed"])
    print(json.dumps(result.as_dict()) if "--json" in own else result.report())
    return last_line(Exit.FINISHED, "evaluated", result.sentence)


def list_presets(args: list[str]) -> int:
    """Names, environments, what they are."""
    from sfactory.presets import family_defaults, presets

    _nothing_else(args)
    found, defaults = presets(), family_defaults()
    widths = max(len(p.name) for p in found), max(len(p.env) for p in found)
    for preset in [*found, *defaults]:
        print(f"{preset.name:{widths[0]}}  {preset.env:{widths[1]}}  {preset.description}")
    print("\nsfactory train PRESET starts one; sfactory train PRESET --print-config shows its settings.")
    print("With *: any other environment of a family, as sfactory train atari/breakout (sfactory envs atari: which).")
    return 0


def check(args: list[str]) -> int:
    """Does an environment keep its promises?"""
    from sfactory import presets, settings
    from sfactory.check_env import check as play

    flags, own, positionals = presets.split_flags(args, {"--seconds": True, "--seed": True, "--json": False})
    target = _one(positionals, "TARGET")
    env = settings.build(*presets.target_layers(target), flags).env
    found = [
        play(
            task,
            env.arguments,
            seconds=float(settings.number(own["--seconds"][-1])) if "--seconds" in own else 3.0,
            seed=settings.whole(own["--seed"][-1], "seed") if "--seed" in own else 0,
            target=target,
        )
        for task in env.tasks
    ]
    if "--json" in own:
        print(json.dumps([report.as_dict() for report in found] if len(found) > 1 else found[0].as_dict()))
    else:
        print("\n\n".join(report.text() for report in found))
    if any(report.bad for report in found):
        bad = [title for report in found for level, title, _ in report.findings if level == "bad"]
        return last_line(Exit.ENVIRONMENT, "broken promises", f"{env.name}: {', '.join(bad)}")
    return last_line(Exit.FINISHED, "checked", f"{env.name} keeps its promises")


KNOWN = {  # family -> (module it needs, extra that brings it, ids)
    "minatar": ("minatar", "minatar", "minatar/breakout minatar/seaquest"),
    "gymnasium": ("gymnasium", "", "gymnasium/CartPole-v1 gymnasium/Pendulum-v1"),
    "atari": ("ale_py", "atari", "atari/pong atari/breakout"),
    "envpool": ("envpool", "envpool", "envpool/Pong-v5"),
}


def list_envs(args: list[str]) -> int:
    """Environment families, nothing of them imported; or the ids of one family."""
    from importlib.util import find_spec

    from sfactory.presets import ENV_GROUP, families

    if args:
        from sfactory.envs import family_ids

        for env_id in family_ids(_one(args, "FAMILY")):
            print(f"{args[0]}/{env_id}")
        return 0
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
    from sfactory import presets, settings
    from sfactory.verify_resume import RunFailed, verify_resume

    numbers = {"--steps": 20_000, "--kills": 3, "--seed": 1}
    flags, own, positionals = presets.split_flags(args, dict.fromkeys(numbers, True))
    count = {
        name: settings.whole(own[name][-1], name.lstrip("-")) if name in own else default
        for name, default in numbers.items()
    }
    target = _one(positionals, "TARGET")
    settings.build(*presets.target_layers(target), flags)  # mistakes are answered here, before anything runs
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


def _room(name: str) -> Callable[[list[str]], int]:
    """A verb that is the `main` of a room of its own, loaded when it is asked for."""

    def run(args: list[str]) -> int:
        from importlib import import_module

        return int(import_module(f"sfactory.{name}").main(args))

    return run


VERBS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": (texts.TRAIN_HELP, train),
    "resume": (texts.RESUME_HELP, resume),
    "eval": (texts.EVAL_HELP, evaluate),
    "compare": (texts.COMPARE_HELP, _room("compare")),
    "report": (texts.REPORT_HELP, _room("report")),
    "sweep": (texts.SWEEP_HELP, _room("sweep")),
    "verify-resume": (texts.VERIFY_HELP, verify),
    "check-env": (texts.CHECK_HELP, check),
    "presets": ("sfactory presets: what comes with settings that work\n", list_presets),
    "envs": ("sfactory envs: families, and what to install for them; sfactory envs FAMILY: its ids\n", list_envs),
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
    from sfactory.settings import shown

    old, new = to_dict(before), to_dict(after)
    names = [(section, key) for section in old for key in old[section] if old[section][key] != new[section][key]]
    changed = {shown(f"{section}.{key}"): (old[section][key], new[section][key]) for section, key in names}
    fixed = (*FIXED, "sampling.", "learning.forced-lag") if before.run.mode == "lockstep" else FIXED
    refused = {n: v for n, v in changed.items() if n.startswith(fixed) and n not in allowed}
    for name, (was, asked) in changed.items():
        if name not in refused and not name.startswith(FREE):
            print(f"warning: {name} was {was!r} and is {asked!r} from here on: one run, two settings", file=sys.stderr)
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
    from sfactory.settings import Given

    return {**flags, "log.quiet": Given("true")} if "--quiet" in own else flags


def _print_config(config: Config) -> int:
    from sfactory.settings_file import to_toml

    print(to_toml(config), end="")
    return 0


def _new_folder(target: str, seed: int) -> Path:
    """runs/<preset>_s<seed>_<date-time>, with a number behind it for runs of the same second."""
    tasks = target.split(",")
    label = tasks[0] if len(tasks) == 1 else f"{tasks[0]}-and-{len(tasks) - 1}-more"
    name = f"{label.replace('/', '-')}_s{seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _check_wandb(config: Config) -> None:
    from importlib.util import find_spec

    if config.log.wandb and find_spec("wandb") is None:
        raise Ended(Exit.USAGE, "log.wandb needs a package that is not installed: pip install 'sfactory[wandb]'")
