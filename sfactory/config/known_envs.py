"""Names of environments in other programs: which presets and which plain ids stand for them here.

`ALE/Breakout-v5`, `BreakoutNoFrameskip-v4`, `MinAtar/Breakout-v1`, `CartPole-v1`, `atari_breakout` and bare names as
`hopper` are no targets; the error names what to type instead, tuned presets first. Families are loaded only then.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

ATARI, MINATAR, GYMNASIUM = "atari", "minatar", "gymnasium"
_VERSION = re.compile(r"[-_]v(\d+)$")
_ATARI_VARIANT = re.compile(r"(NoFrameskip|Deterministic)$")
_PREFIX = re.compile(r"(atari|minatar|mujoco|procgen)[-_]", re.IGNORECASE)
_SAMPLE_FACTORY = {
    "pendulum": "InvertedPendulum",
    "doublependulum": "InvertedDoublePendulum",
    "walker": "Walker2d",
    "standup": "HumanoidStandup",
}
"""What Sample Factory calls these tasks behind mujoco_; its mujoco_pendulum is not Pendulum-v1."""
_NAMESPACES = {
    "ale": ATARI,
    "atari": ATARI,
    "minatar": MINATAR,
    **dict.fromkeys(("", "gym", "gymnasium", "mujoco", "classic", "procgen", "mpe", "butterfly"), ""),
}
"""What stands in front of a slash -> the family it means, or empty for any. Others may be misspelled families."""
_USABLE_BEHIND_NEWEST = 1
"""Versions of an id, counted from the newest, that gymnasium still builds: v4 and v5 of MuJoCo, not v3."""


class Preset(Protocol):
    """What is used of `sfactory.config.presets.Preset`."""

    @property
    def name(self) -> str: ...
    @property
    def env(self) -> str: ...
    @property
    def is_variant(self) -> bool: ...


@dataclass(frozen=True)
class Name:
    """The parts of a foreign name. family: the one it must belong to, or empty. stem: letters and digits only, empty
    if nothing is known about the name.
    """

    family: str
    stem: str
    base: str
    version: int | None

    @classmethod
    def of(cls, target: str) -> Name:
        namespace, _, base = target.rpartition(":")[2].rpartition("/")
        if namespace.lower() not in _NAMESPACES:
            return cls("", "", "", None)
        family = _NAMESPACES[namespace.lower()]
        found = _VERSION.search(base)
        base = _VERSION.sub("", base)
        if prefix := _PREFIX.match(base):
            family = _NAMESPACES.get(prefix[1].lower(), family)
            base = base[prefix.end() :]
            if prefix[1].lower() == "mujoco":
                base = _SAMPLE_FACTORY.get(base.lower(), base)
        if base.lower().endswith("-minatar"):
            family, base = MINATAR, base[: -len("-minatar")]
        plain = _ATARI_VARIANT.sub("", base)
        if plain != base:
            family = ATARI
        return cls(family, _letters(plain), plain, int(found[1]) if found else None)


def instead_of(target: str, presets: Sequence[Preset]) -> str:
    """What to type instead of a name from elsewhere, as `write classic/cartpole (tuned)`; empty if nothing fits."""
    name = Name.of(target)
    if not name.stem:
        return ""
    fitting = [preset for preset in presets if _fits(preset, name)]
    tuned = [preset.name for preset in fitting if not preset.is_variant]
    variants = [preset.name for preset in fitting if preset.is_variant]
    plain = [other for other in _plain_ids(target, name) if other not in tuned]
    parts = [f"{_listed(tuned)} (tuned)"] if tuned else []
    parts += [f"{other} (settings of {other.partition('/')[0]}/*)" for other in plain]
    parts += [f"{_listed(variants)} (another algorithm or network)"] if variants else []
    return f"write {', or '.join(parts)}" if parts else ""


def _fits(preset: Preset, name: Name) -> bool:
    family, _, env_id = preset.env.partition("/")
    if name.family and family != name.family:
        return False
    if not name.family and name.version is not None and family == MINATAR:  # Breakout-v5 is the Atari game
        return False
    env = Name.of(env_id.rpartition("/")[2])
    return name.stem in (_letters(preset.name.rpartition("/")[2]), env.stem)


def _plain_ids(target: str, name: Name) -> list[str]:
    """Names of environments of this name, in families that load quickly."""
    found = []
    if name.family in ("", ATARI):
        known = _ids(ATARI)
        games = [game for game in known if _letters(game) == name.stem]
        if not known and name.family == ATARI:  # ale-py is not installed
            games = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.base).lower()]
        found += [f"{ATARI}/{game}" for game in games]
    if not name.family and not found:  # ale-py registers its games with gymnasium too
        found += [f"{GYMNASIUM}/{env_id}" for env_id in _registered(target, name)]
    return found


def _registered(target: str, name: Name) -> list[str]:
    """The id of gymnasium: the same version if it can be built, else the newest."""
    versions = {}
    for env_id in _ids(GYMNASIUM):
        other = Name.of(env_id)
        if "/" not in env_id and _letters(_VERSION.sub("", env_id)) == name.stem and other.version is not None:
            versions[other.version] = env_id
    if not versions:
        return []
    newest = max(versions)
    asked = newest if name.version is None or newest - name.version > _USABLE_BEHIND_NEWEST else name.version
    return [versions.get(asked, versions[newest])]


def _ids(family: str) -> list[str]:
    """Ids of a family; none if its package is not installed. What the package prints does not reach stdout."""
    from sfactory.envs import family_ids
    from sfactory.errors import EnvError

    with contextlib.suppress(EnvError, ImportError), contextlib.redirect_stdout(sys.stderr):
        return family_ids(family)
    return []


def _letters(text: str) -> str:
    """Letters and digits in lower case: space_invaders and SpaceInvaders are the same."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
