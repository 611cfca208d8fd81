"""Scripted players of the five MinAtar games, from the state of the package's own game.

They play well enough that everything the rules provide for happens within a few thousand steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
Player = Callable[[Any, np.random.Generator], int]


def towards(x: int, target: int) -> int:
    return LEFT if target < x else RIGHT if target > x else NOOP


def breakout(game: Any, draws: np.random.Generator) -> int:
    """Stand where the ball will come down, or now and then beside it, so that it does not fly in circles."""
    x, y, dx, dy = game.ball_x, game.ball_y, 1 if game.ball_dir in (1, 2) else -1, 1 if game.ball_dir > 1 else -1
    while y < 8 or dy < 0:
        if not 0 <= x + dx <= 9:
            dx = -dx
        else:
            x += dx
        if y + dy < 0 or game.brick_map[y + dy, x]:
            dy = -dy
        else:
            y += dy
    beside = game.ball_y >= 7 and 0 <= x + dx <= 9 and draws.random() < 0.5
    return towards(game.pos, x + dx if beside else x)


def asterix(game: Any, draws: np.random.Generator) -> int:
    """Walk to gold that can be reached, and out of the way of enemies."""

    def danger(x: int, y: int) -> float:
        row = game.entities[y - 1]
        if row is None:
            return 0.0
        distance = abs(row[0] - x)
        if row[3]:
            return -1.0 / (1 + distance)
        return 3.0 if distance <= 1 else 1.0 / distance

    x, y = game.player_x, game.player_y
    places = {
        NOOP: (x, y), LEFT: (max(x - 1, 0), y), RIGHT: (min(x + 1, 9), y), UP: (x, max(y - 1, 1)),
        DOWN: (x, min(y + 1, 8)),
    }  # fmt: skip
    return min(places, key=lambda action: (danger(*places[action]), draws.random()))


def freeway(game: Any, draws: np.random.Generator) -> int:
    """Walk up, sometimes back."""
    return UP if draws.random() < 0.9 else int(draws.integers(0, 6))


def space_invaders(game: Any, draws: np.random.Generator) -> int:
    """Shoot from below the aliens and leave the column of a bullet."""
    if game.e_bullet_map[4:, game.pos].any():
        return LEFT if game.pos == 9 or (game.pos > 0 and draws.random() < 0.5) else RIGHT
    columns = np.flatnonzero(game.alien_map.any(axis=0))
    nearest = int(columns[np.abs(columns - game.pos).argmin()])
    return towards(game.pos, nearest) or FIRE


def seaquest(game: Any, draws: np.random.Generator) -> int:
    """Collect divers, surface with them in time, shoot what is ahead and leave the rows of what comes near."""
    x, y, enemies = game.sub_x, game.sub_y, game.e_fish + game.e_subs
    if (game.diver_count == 6 or (game.oxygen < 60 and game.diver_count > 0)) and draws.random() < 0.95:
        goal = (x, 0)
    else:
        divers = [d for d in game.divers if 0 < d[0] < 9 or d[2] != (d[0] == 9)]
        nearest = min(divers, key=lambda d: abs(d[0] - x) + 2 * abs(d[1] - y), default=[x, 5])
        goal = (nearest[0], nearest[1])

    def danger(action: int) -> float:
        new_x = min(max(x + (action == RIGHT) - (action == LEFT), 0), 9)
        new_y = min(max(y + (action == DOWN) - (action == UP), 0), 8)
        near = sum(3.0 for e in enemies if e[1] == new_y and abs(e[0] - new_x) <= 1)
        near += sum(3.0 for b in game.e_bullets if b[1] == new_y and abs(b[0] - new_x) <= 2)
        surfaces = new_y == 0 and not game.surface and game.diver_count == 0
        ahead = any(e[1] == y and (e[0] > x) == game.sub_or for e in enemies)
        shot = 0.5 * (action == FIRE and game.shot_timer == 0 and ahead)
        return (
            near
            + 20 * surfaces
            - shot
            + 0.1 * (abs(goal[0] - new_x) + 2 * abs(goal[1] - new_y))
            + 0.01 * draws.random()
        )

    return min(range(6), key=danger)


PLAYERS: dict[str, Player] = {
    "asterix": asterix, "breakout": breakout, "freeway": freeway, "seaquest": seaquest,
    "space_invaders": space_invaders,
}  # fmt: skip
