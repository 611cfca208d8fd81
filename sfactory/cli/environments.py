"""`sfactory presets`, `sfactory envs` and `sfactory check-env`."""

from __future__ import annotations

import json

from sfactory.cli.args import no_words, one_word
from sfactory.errors import Exit, print_exit_line

KNOWN = {  # family -> (module it needs, extra that brings it, ids)
    "minatar": ("minatar", "minatar", "minatar/breakout minatar/seaquest"),
    "gymnasium": ("gymnasium", "", "gymnasium/CartPole-v1 gymnasium/Pendulum-v1"),
    "atari": ("ale_py", "atari", "atari/pong atari/breakout"),
    "envpool": ("envpool", "envpool", "envpool/Pong-v5"),
}


def list_presets(args: list[str]) -> int:
    """Names, environments, what they are."""
    from sfactory.config.presets import family_defaults, presets

    no_words(args)
    found, defaults = presets(), family_defaults()
    widths = max(len(p.name) for p in found), max(len(p.env) for p in found)
    for preset in [*found, *defaults]:
        print(f"{preset.name:{widths[0]}}  {preset.env:{widths[1]}}  {preset.description}")
    print("\nsfactory train PRESET starts one; sfactory train PRESET --print-config shows its settings.")
    print("With *: any other environment of a family, as sfactory train atari/breakout (sfactory envs atari: which).")
    return 0


def list_envs(args: list[str]) -> int:
    """Environment families, nothing of them imported; or the ids of one family."""
    from importlib.util import find_spec

    from sfactory.config.presets import ENV_GROUP, families

    if args:
        from sfactory.envs import family_ids

        for env_id in family_ids(one_word(args, "FAMILY")):
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


def check(args: list[str]) -> int:
    """Does an environment keep its promises?"""
    from sfactory.config import parsing, presets
    from sfactory.tools.check_env import check as play

    flags, own, positionals = presets.split_flags(args, {"--seconds": True, "--seed": True, "--json": False})
    target = one_word(positionals, "TARGET")
    env = parsing.build(*presets.target_layers(target), flags).env
    found = [
        play(
            task,
            env.arguments,
            seconds=float(parsing.number(own["--seconds"][-1])) if "--seconds" in own else 3.0,
            seed=parsing.whole(own["--seed"][-1], "seed") if "--seed" in own else 0,
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
        return print_exit_line(Exit.ENVIRONMENT, "broken promises", f"{env.name}: {', '.join(bad)}")
    return print_exit_line(Exit.FINISHED, "checked", f"{env.name} keeps its promises")
