"""Names of environments in other programs: which presets and which plain ids stand for them here.

`ALE/Breakout-v5`, `BreakoutNoFrameskip-v4`, `MinAtar/Breakout-v1`, `CartPole-v1`, `atari_breakout` and bare names as
`hopper` are no targets; the error names what to type instead, tuned presets first. Families are loaded only then.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

ATARI, MINATAR, GYMNASIUM, PROCGEN, VIZDOOM = "atari", "minatar", "gymnasium", "procgen", "vizdoom"
_VERSION = re.compile(r"[-_]v(\d+)$")
_ATARI_VARIANT = re.compile(r"(NoFrameskip|Deterministic)$")
_ATARI_VERSIONS = (None, 0, 4, 5)
"""Versions of ids of Atari games: Blackjack-v1 is not one of them."""
_PREFIX = re.compile(r"(atari|minatar|mujoco|procgen|doom|vizdoom)[-_]|(vizdoom)(?=[a-z])", re.IGNORECASE)
_SAMPLE_FACTORY = {
    "mujoco_pendulum": "InvertedPendulum",
    "mujoco_doublependulum": "InvertedDoublePendulum",
    "mujoco_walker": "Walker2d",
    "mujoco_standup": "HumanoidStandup",
    "atari_asteroid": "Asteroids",
    "atari_kongfumaster": "KungFuMaster",
    "atari_montezuma": "MontezumaRevenge",
    "atari_privateye": "PrivateEye",
}
"""Tasks that Sample Factory calls otherwise; its mujoco_pendulum is not Pendulum-v1."""
_PROCGEN = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot", "heist", "jumper",
    "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip
_DOOM = (
    "DeadlyCorridor", "DefendTheCenter", "DefendTheLine", "HealthGathering", "HealthGatheringSupreme", "MyWayHome",
    "PredictPosition", "TakeCover",
)  # fmt: skip
_IN_ENVPOOL = {
    PROCGEN: {game: f"envpool/{game.capitalize()}Hard-v0" for game in _PROCGEN},
    VIZDOOM: {name.lower(): f"envpool/{name}-v1" for name in _DOOM},
}
"""Family elsewhere -> letters of a name -> the id of envpool. Procgen's own ids are the hard levels."""
_NOTES = {VIZDOOM: "; another task: health packs in place of a monster"}
"""Family elsewhere -> what is different in our preset of the same name."""
_FAMILIES = {"ale": ATARI, "doom": VIZDOOM, "classic_control": "classic", "gym": GYMNASIUM, "mpe": "pettingzoo"}
"""Names of families in other programs."""
_NAMESPACES = {
    "ale": ATARI,
    "atari": ATARI,
    "minatar": MINATAR,
    "procgen": PROCGEN,
    **dict.fromkeys(("vizdoom", "doom"), VIZDOOM),
    **dict.fromkeys(("", "gym", "gymnasium", "mujoco", "classic", "mpe", "butterfly"), ""),
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
            word, base = (prefix[1] or prefix[2]).lower(), base[prefix.end() :]
            family = _NAMESPACES.get(word, family)
            base = _SAMPLE_FACTORY.get(f"{word}_{base.lower()}", base)
        if base.lower().endswith("-minatar"):
            family, base = MINATAR, base[: -len("-minatar")]
        plain = _ATARI_VARIANT.sub("", base)
        if plain != base:
            family = ATARI
        return cls(family, _letters(plain), plain, int(found[1]) if found else None)


def instead_of(target: str, presets: Sequence[Preset]) -> str:
    """What to type instead of a name from elsewhere, as `write classic/cartpole (tuned)`; empty if nothing fits."""
    return _written(*_found(target, presets), note=_NOTES.get(Name.of(target).family, ""))


def first_instead_of(target: str, presets: Sequence[Preset]) -> str:
    """The first of these names, as `classic/cartpole`; empty if nothing fits."""
    return next((name for names in _found(target, presets) for name in names), "")


def of_family(word: str, presets: Sequence[Preset], families: Collection[str]) -> str:
    """What to type instead of a family alone, as atari or mujoco: its presets, and where its ids are listed."""
    word = word.strip("/").lower()
    family = _FAMILIES.get(word, word)
    names = [preset for preset in presets if preset.name.startswith(f"{family}/")]
    text = _written(*_tuned_and_variants(names))
    if family in families:
        ids = f"{family}/ID (list: sfactory envs {family})"
        text = f"{text}, or {ids}" if text else f"write {ids}"
    return text


def _found(target: str, presets: Sequence[Preset]) -> tuple[list[str], list[str], list[str]]:
    """Tuned presets, variants and plain ids that fit, in the order of the answer."""
    name = Name.of(target)
    if not name.stem:
        return [], [], []
    tuned, _, variants = _tuned_and_variants([preset for preset in presets if _fits(preset, name)])
    plain = [other for other in _plain_ids(target, name) if other not in tuned]
    return tuned, [] if tuned and name.family in _IN_ENVPOOL else plain, variants


def _tuned_and_variants(presets: Sequence[Preset]) -> tuple[list[str], list[str], list[str]]:
    """Names of presets, without plain ids."""
    tuned = [preset.name for preset in presets if not preset.is_variant]
    return tuned, [], [preset.name for preset in presets if preset.is_variant]


def _written(tuned: Sequence[str], plain: Sequence[str], variants: Sequence[str], note: str = "") -> str:
    """The answer with these names; empty without any."""
    parts = [f"{_listed(tuned)} (tuned{note})"] if tuned else []
    parts += [f"{other} (settings of {other.partition('/')[0]}/*)" for other in plain]
    parts += [f"{_listed(variants)} (another algorithm or network)"] if variants else []
    return f"write {', or '.join(parts)}" if parts else ""


def _fits(preset: Preset, name: Name) -> bool:
    family, _, env_id = preset.env.partition("/")
    if name.family and name.family not in (family, preset.name.partition("/")[0]):
        return False
    if not name.family and name.version is not None and family == MINATAR:  # Breakout-v5 is the Atari game
        return False
    env = Name.of(env_id.rpartition("/")[2])
    return name.stem in (_letters(preset.name.rpartition("/")[2]), env.stem)


def _plain_ids(target: str, name: Name) -> list[str]:
    """Names of environments of this name, in families that load quickly."""
    found = []
    if name.family in _IN_ENVPOOL:
        env_id = _IN_ENVPOOL[name.family].get(name.stem)
        return [env_id] if env_id else []
    if name.family == ATARI or (not name.family and name.version in _ATARI_VERSIONS):
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
