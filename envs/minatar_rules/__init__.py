"""The rules of the five MinAtar games for E games at once, as array operations; `sfactory_envs.minatar` uses them."""

from sfactory_envs.minatar_rules.asterix import Asterix
from sfactory_envs.minatar_rules.breakout import Breakout
from sfactory_envs.minatar_rules.freeway import Freeway
from sfactory_envs.minatar_rules.game import Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams
from sfactory_envs.minatar_rules.seaquest import Seaquest
from sfactory_envs.minatar_rules.space_invaders import SpaceInvaders

GAMES: dict[str, type[Game]] = {
    "asterix": Asterix,
    "breakout": Breakout,
    "freeway": Freeway,
    "seaquest": Seaquest,
    "space_invaders": SpaceInvaders,
}

__all__ = ["GAMES", "Game", "RandomStreams"]
