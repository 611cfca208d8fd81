"""The command `sfactory`: parse, call, say how it ended. Thin.

Nothing heavy is imported before a verb needs it: spawned workers import the main module anew, and
`import torch` would cost every sampler 1.5 s and a few hundred MB.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sfactory._version import __version__
from sfactory.cli import help as texts
from sfactory.cli.args import one_word
from sfactory.cli.bench import bench, profile
from sfactory.cli.completion import completion
from sfactory.cli.doctor import doctor
from sfactory.cli.environments import check, list_envs, list_presets
from sfactory.cli.evaluate import evaluate
from sfactory.cli.export import export
from sfactory.cli.info import info
from sfactory.cli.verify_resume import verify
from sfactory.cli.watch import watch
from sfactory.config.resume_rules import refuse_changes
from sfactory.errors import CommandError, Exit, exit_of, print_exit_line, resume_command
from sfactory.run.folder import has_checkpoint, need_checkpoint, new_folder, settings_of

if TYPE_CHECKING:
    from sfactory.config import Config
    from sfactory.config.parsing import ConfigLayer

COMMON = {"--config": True, "--print-config": False, "--json": False, "--quiet": False, "--help-all": False}
def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script. Always leaves through sys.exit; the last line on stderr says how it ended."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a user's own encoder lies where they stand; last, so that it hides nothing
        code = _dispatch(args)
    except CommandError as end:
        code = print_exit_line(end.exit_code, end.exit_code.outcome, end.sentence)
    except BrokenPipeError:  # `sfactory presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = print_exit_line(Exit.INTERRUPTED, Exit.INTERRUPTED.outcome, "stopped before anything was trained")
    except Exception as error:
        exit_code, sentence = exit_of(error)
        code = print_exit_line(exit_code, exit_code.outcome, sentence)
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
        raise CommandError(Exit.USAGE, f"{verb}: no such verb{_meant(verb)}; there are {', '.join(VERBS)}")
    text, run = VERBS[verb]
    if "--help" in rest or "-h" in rest:
        print(text, end="")
        return 0
    return run(rest)


# -- verbs ---------------------------------------------------------------------------------------------------


def train(args: list[str]) -> int:
    """A new run."""
    from sfactory.config import parsing, presets

    flags, own, positionals = presets.split_flags(args, COMMON)
    if "--help-all" in own:
        print(parsing.all_options(), end="")
        return 0
    target = one_word(positionals, "TARGET", optional=True)
    if (Path(target) / "config.toml").is_file():
        raise CommandError(Exit.USAGE, f"{target} is a run; go on with it: {resume_command(Path(target))}")
    files = [Path(name) for name in own.get("--config", [])]
    config = parsing.build(*presets.target_layers(target, files), _quietly(flags, own))
    if "--print-config" in own:
        return _print_config(config)
    run_dir = Path(config.run.dir) if config.run.dir else new_folder(target or config.env.name, config.run.seed)
    if config.run.requeue and not config.run.dir:
        raise CommandError(Exit.USAGE, "run.requeue needs run.dir: the same command must find the same run again")
    if config.run.requeue and (run_dir / "config.toml").is_file():  # the scheduler started the same command again
        before = parsing.build(presets.read_toml(settings_of(run_dir)))
        if config.sampling.auto:  # what the first launch found
            config = replace(config, sampling=before.sampling, run=replace(
                config.run, learner_threads=before.run.learner_threads, inference_threads=before.run.inference_threads
            ))  # fmt: skip
        refuse_changes(before, config, [])
        again = has_checkpoint(run_dir)  # else the first launch was stopped before there was one: it begins anew
        return _run(config, run_dir, resume=again, as_json="--json" in own)
    if run_dir.exists():
        what = "holds a run already" if (run_dir / "config.toml").is_file() else "exists already"
        hint = f"resume it: {resume_command(run_dir)}; or" if (run_dir / "config.toml").is_file() else "please"
        raise CommandError(Exit.USAGE, f"{run_dir} {what}; {hint} choose another --run.dir")
    if config.sampling.auto:
        from sfactory.tools.tune import tuned

        config = tuned(config, lambda line: None if config.log.quiet else print(line, file=sys.stderr, flush=True))
    return _run(config, run_dir, resume=False, as_json="--json" in own)


def resume(args: list[str]) -> int:
    """Go on with a run."""
    from sfactory.config import parsing, presets

    flags, own, positionals = presets.split_flags(args, {**COMMON, "--allow": True})
    if "--help-all" in own:
        print(parsing.all_options(), end="")
        return 0
    run_dir = Path(one_word(positionals, "runs/NAME"))
    file = settings_of(run_dir)
    before = parsing.build(presets.read_toml(file))
    files = [presets.read_toml(Path(name)) for name in own.get("--config", [])]
    config = parsing.build(presets.read_toml(file), *files, _quietly(flags, own))
    if "--print-config" in own:
        return _print_config(config)
    need_checkpoint(run_dir)
    refuse_changes(before, config, own.get("--allow", []))
    return _run(config, run_dir, resume=True, as_json="--json" in own)


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
    "watch": (texts.WATCH_HELP, watch),
    "export": (texts.EXPORT_HELP, export),
    "info": (texts.INFO_HELP, info),
    "compare": (texts.COMPARE_HELP, _room("tools.compare")),
    "report": (texts.REPORT_HELP, _room("tools.report")),
    "sweep": (texts.SWEEP_HELP, _room("cli.sweep")),
    "bench": (texts.BENCH_HELP, bench),
    "profile": (texts.PROFILE_HELP, profile),
    "verify-resume": (texts.VERIFY_HELP, verify),
    "check-env": (texts.CHECK_HELP, check),
    "doctor": (texts.DOCTOR_HELP, doctor),
    "presets": ("sfactory presets: what comes with settings that work\n", list_presets),
    "envs": ("sfactory envs: families, and what to install for them; sfactory envs FAMILY: its ids\n", list_envs),
    "completion": (texts.COMPLETION_HELP, lambda args: completion(args, {v: text for v, (text, _) in VERBS.items()})),
}


def _meant(verb: str) -> str:
    """What a first word that is no verb was probably meant to be."""
    from sfactory.config.presets import near_target
    from sfactory.errors import did_you_mean

    if verb.startswith("-"):
        return "; the verb comes first, as in sfactory train TARGET --section.field value"
    if (Path(verb) / "config.toml").is_file():
        return f"; did you mean {resume_command(Path(verb))}?"
    hint = did_you_mean(verb, VERBS)
    if hint and "/" not in verb:
        return hint
    target = near_target(verb) or (verb if "/" in verb else "")
    return f"; did you mean sfactory train {target}?" if target else ""


# -- steps of a verb -----------------------------------------------------------------------------------------


def _run(config: Config, run_dir: Path, *, resume: bool, as_json: bool) -> int:
    """Train, then say what was reached and what can be done next."""
    from sfactory.supervisor import supervisor

    outcome = supervisor.train(config, run_dir, resume=resume)
    code = Exit(outcome.code)
    if as_json:
        print(json.dumps({**vars(outcome), "run_dir": str(run_dir)}))
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
    return print_exit_line(code, outcome.name, outcome.sentence, outcome.checkpoint, outcome.env_steps, run_dir)


def _quietly(flags: ConfigLayer, own: dict[str, list[str]]) -> ConfigLayer:
    from sfactory.config.parsing import RawValue

    return {**flags, "log.quiet": RawValue("true")} if "--quiet" in own else flags


def _print_config(config: Config) -> int:
    from sfactory.config.toml_file import to_toml

    print(to_toml(config), end="")
    return 0
