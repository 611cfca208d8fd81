"""The spec of its environment in a checkpoint: a policy is loaded with it, and compared with other environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfactory.envs import ActionLeaf, EnvSpec, Leaf
from sfactory.envs.saved_spec import spec_from_json, spec_to_json
from sfactory.errors import CheckpointError, EnvError

KEY = "spec"
"""Entry of a checkpoint's state."""


def spec_entry(spec: EnvSpec) -> dict[str, Any]:
    """The entry of a checkpoint's state that holds the spec, as JSON."""
    return {KEY: spec_to_json(spec)}


def recorded_spec(state: Mapping[str, Any]) -> EnvSpec | None:
    """The spec in a checkpoint's state; None if an earlier version wrote it. CheckpointError if it cannot be used."""
    if KEY not in state:
        return None
    try:
        return spec_from_json(state[KEY])
    except ValueError as error:
        raise CheckpointError(f"the environment's spec in state.json cannot be used: {error}") from error


def check_same_spaces(trained: EnvSpec, spec: EnvSpec, who: str = "the policy", same_game: bool = False) -> None:
    """Raise EnvError if a policy cannot play in an environment, because it was trained with other spaces.

    trained: spec of the policy's own run. spec: of the environment. who: name of the policy in the message.
    same_game: the names of the agents and the bounds of the actions must be equal too.
    """
    if spec.mask and set(spec.obs) - set(trained.obs) == {spec.mask}:
        raise EnvError(
            f"{spec.name} says which actions are allowed, in {spec.mask}, and {who} was trained without it: it would "
            "choose others"
        )
    for what in ("obs", "actions", *["agents"] * same_game):
        _check_same(what, trained, spec, who, same_game)


def check_same_actions(trained: EnvSpec, spec: EnvSpec, who: str) -> None:
    """Raise EnvError if the actions differ, although the weights may have equal shapes. Arguments as above."""
    _check_same("actions", trained, spec, who, bounds=False)


def _check_same(what: str, trained: EnvSpec, spec: EnvSpec, who: str, bounds: bool) -> None:
    now, before = (_in_words(getattr(one, what), bounds) for one in (spec, trained))
    if now != before if what == "agents" else sorted(now) != sorted(before):
        here, there = (", ".join(words) or "none" for words in (now, before))
        raise EnvError(f"{spec.name}: {what} {here}, but {who} was trained with {there}")


def _in_words(parts: Mapping[str, Leaf | ActionLeaf] | Sequence[str], bounds: bool) -> list[str]:
    """Names, or leaves as `obs [4] float32` and `action of [2]`. bounds: say those of actions too."""
    if not isinstance(parts, Mapping):
        return list(parts)
    return [f"{name}{_leaf_in_words(leaf, bounds)}" for name, leaf in parts.items()]


def _leaf_in_words(leaf: Leaf | ActionLeaf, bounds: bool) -> str:
    if not isinstance(leaf, ActionLeaf):
        return f" {list(leaf.shape)} {leaf.dtype}"
    if leaf.kind == "discrete":
        return f"{f' {list(leaf.shape)}' if leaf.shape else ''} of {list(leaf.sizes)}"
    pairs = list(zip(leaf.low, leaf.high, strict=True))
    pairs = pairs[:1] if len(set(pairs)) == 1 else pairs
    limits = f" from {', '.join(f'{low:g} to {high:g}' for low, high in pairs)}" if bounds else ""
    return f" {list(leaf.shape)} {leaf.dtype}{limits}"
