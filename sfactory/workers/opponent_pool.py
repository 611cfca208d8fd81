"""The pool of opponents: earlier policies of this run and policies of other runs, their ratings, who is admitted.

    RUN/pool/000001048576/     a member: its policy as in a checkpoint, named by its trained env_steps
    RUN/pool/ratings.json      everybody's rating and results, for people and `sfactory info`

The learner owns the pool. It announces the numbers of the opponents in shared memory: env_steps of a member, or
`outside(i)` for the i-th of `selfplay.opponents`. Samplers choose among these, inference loads their policies. What has
left the pool still finishes its games: it stays known until as many others have left after it and no game with it goes
on. Its files stay longer: a resume needs those that its checkpoint knows.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.algo.ratings import updated_ratings
from sfactory.errors import CheckpointError, FileRefused
from sfactory.files import folder_entries, replace_text, require
from sfactory.run.checkpoint import Contents, candidates
from sfactory.run.checkpoint_files import read_state
from sfactory.run.checkpoint_writer import write
from sfactory.run.pool_files import FIRST_RATING, RATINGS, SCORES, PoolEntry, is_pool_state, member_path, pool_dir
from sfactory.run.presence import LockHolder
from sfactory.shm.published import Published
from sfactory.shm.trajectory import CURRENT, Trajectories
from sfactory.workers.shared import RunSpec


def outside(index: int) -> int:
    """Number of an opponent of `selfplay.opponents`, by its place."""
    return CURRENT - 1 - index


class OpponentPool:
    """See the top of this file."""

    def __init__(self, run_spec: RunSpec, announced: Published, log: Callable[[str], None]) -> None:
        self.settings, self.run_dir, self.agents = run_spec.config.selfplay, Path(run_spec.run_dir), run_spec.spec.rows
        self._lock_holder = LockHolder(self.run_dir)
        self.checkpoints_kept = run_spec.config.checkpoint.keep
        self.announced, self.log = announced, log
        self.rating = FIRST_RATING
        """Of the policy that learns."""
        self.games = 0
        """Complete games against opponents."""
        self.recent: deque[float] = deque(maxlen=self.settings.games)
        """Scores of the last games."""
        self.since_admission = 0
        """Games since the last admission, no more than `selfplay.games`."""
        self.admitted_at = 0
        """Trained env_steps at the last admission."""
        self.opponents = {
            outside(i): PoolEntry(outside(i), name) for i, name in enumerate(self.settings.opponent_paths)
        }

    # -- games -------------------------------------------------------------------------------------------------

    def count(self, slots: Sequence[tuple[int, int]], trajectories: Trajectories) -> None:
        """Count the games that ended in these slots (group, slot), and forget members without games.

        Before the slots are released.
        """
        for slot in slots:
            outcomes, players = trajectories["outcome"][slot], trajectories["player"][slot]
            for t, lane in zip(*np.nonzero(~np.isnan(outcomes)), strict=True):
                env = lane // self.agents * self.agents
                seats = players[t, env : env + self.agents]
                self._count_game(int(seats[seats != CURRENT][0]), int(outcomes[t, lane]))
        self._forget(trajectories["player"])

    def _count_game(self, number: int, outcome: int) -> None:
        score = SCORES[outcome]
        self.games += 1
        self.recent.append(score)
        self.since_admission = min(self.since_admission + 1, self.settings.games)
        opponent = self.opponents.get(number)
        if opponent is None:  # it left long ago
            return
        self.rating, opponent.rating = updated_ratings(self.rating, opponent.rating, score)
        opponent.wins += outcome > 0
        opponent.draws += outcome == 0
        opponent.losses += outcome < 0

    # -- members -----------------------------------------------------------------------------------------------

    @property
    def playing(self) -> list[PoolEntry]:
        """Opponents of new games: those of other runs, then members from the oldest to the newest."""
        return [one for one in self.opponents.values() if not one.retired]

    def due(self, env_steps: int) -> bool:
        """Whether the policy is to be admitted now. env_steps: trained so far."""
        if env_steps - self.admitted_at >= self.settings.every:
            return True
        enough = self.since_admission == self.settings.games
        return enough and env_steps > self.admitted_at and float(np.mean(self.recent)) > self.settings.admit

    def admit(self, contents: Contents) -> None:
        """Write the policy of a checkpoint's contents into the pool and announce it. A full disk is only reported."""
        env_steps = int(contents.state["env_steps"])
        self.admitted_at, self.since_admission = env_steps, 0
        try:
            self._lock_holder.require()
            write(pool_dir(self.run_dir), contents)
        except (OSError, CheckpointError, FileRefused) as error:
            self.log(f"the policy at {env_steps:,} steps is not in the pool: {error}")
            return
        self.opponents[env_steps] = PoolEntry(env_steps, f"{env_steps:,} steps", self.rating)
        self._retire()
        self.announce()
        self.write_ratings()

    def _retire(self) -> None:
        """Take a member out of the pool if there are too many."""
        members = [one for one in self.playing if one.inside]
        if len(members) > self.settings.pool:
            between = range(1, len(members) - 1) or range(1)
            gap = {i: members[i + 1].number - members[max(i - 1, 0)].number for i in between}
            number = members[min(gap, key=lambda i: gap[i])].number
            self.opponents[number] = self.opponents.pop(number)  # to the end: in the order in which they left
            self.opponents[number].retired = True

    def _forget(self, players: np.ndarray) -> None:
        """Forget members after which as many others have left, once no game with them goes on.

        players: of all rows of all slots; among them are those of the games that go on, and of some that have ended.
        """
        gone = [one for one in self.opponents.values() if one.retired]
        for one in gone[: max(0, len(gone) - self.settings.pool)]:
            if not (players == one.number).any():
                del self.opponents[one.number]

    def delete_unused(self) -> None:
        """Delete the files of policies that neither this pool nor one of the checkpoints knows that a resume may use.

        Called after a checkpoint was saved, not when a member is forgotten: a run that is killed between the two goes
        on from a checkpoint that knows it.
        """
        with contextlib.suppress(OSError, ValueError, CheckpointError, FileRefused):  # another time
            kept = {member_path(self.run_dir, number) for number in {*self.opponents, *self._of_checkpoints()}}
            for path in folder_entries(pool_dir(self.run_dir)):
                if path not in kept and path.name != RATINGS:
                    shutil.rmtree(path, ignore_errors=True)

    def _of_checkpoints(self) -> Iterator[int]:
        """Numbers of the members that the newest checkpoints of the run know, as many as are kept."""
        for path in candidates(self.run_dir)[: self.checkpoints_kept]:
            state = read_state(path).get("selfplay", {})
            if is_pool_state(state):
                yield from (one["number"] for one in state["opponents"] if one["number"] > CURRENT)

    def announce(self) -> None:
        """Tell the samplers whom new games may be played against."""
        numbers = [one.number for one in self.playing]
        room = 1 + self.settings.pool + len(self.settings.opponent_paths)
        self.announced.write(np.array([len(numbers), *numbers] + [0] * (room - 1 - len(numbers)), np.float64))

    # -- numbers -----------------------------------------------------------------------------------------------

    def row(self) -> dict[str, float]:
        """Metrics."""
        row = {
            "selfplay/elo": self.rating,
            "selfplay/games": float(self.games),
            "selfplay/pool": float(len(self.playing)),
        }
        if self.recent:
            scores = np.array(self.recent)
            row["selfplay/score"] = float(scores.mean())
            row |= {
                f"selfplay/{name}": float((scores == score).mean())
                for name, score in (("wins", 1.0), ("draws", 0.5), ("losses", 0.0))
            }
        if self.playing:
            row["selfplay/elo_best_opponent"] = max(one.rating for one in self.playing)
        for i, path in enumerate(self.settings.opponent_paths):
            one = self.opponents[outside(i)]
            if games := one.wins + one.draws + one.losses:
                row[f"selfplay/score/{path}"] = (one.wins + one.draws / 2) / games
        return row

    def write_ratings(self) -> None:
        """Write `ratings.json` for people. It is no part of the state: a failure is ignored."""
        table = {"elo": self.rating, "games": self.games, "opponents": [asdict(one) for one in self.opponents.values()]}
        try:
            self._lock_holder.require()
            require(pool_dir(self.run_dir), "a folder")
            pool_dir(self.run_dir).mkdir(exist_ok=True)
            replace_text(pool_dir(self.run_dir) / RATINGS, json.dumps(table, indent=1) + "\n")
        except (OSError, FileRefused) as error:
            self.log(f"{RATINGS} could not be written: {error}")

    # -- in a checkpoint ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The entry of a checkpoint's state."""
        return {
            "rating": self.rating,
            "games": self.games,
            "recent": list(self.recent),
            "since_admission": self.since_admission,
            "admitted_at": self.admitted_at,
            "opponents": [asdict(one) for one in self.opponents.values()],
        }

    def load_state_dict(self, state: object) -> None:
        """Restore what `state_dict` returned, and delete members that joined after it.

        Opponents of other runs keep their results by name. CheckpointError if it cannot be used or a member is missing.
        """
        if not is_pool_state(state):
            raise CheckpointError("state.json has no usable selfplay")
        assert isinstance(state, Mapping)
        self.rating, self.games = float(state["rating"]), int(state["games"])
        self.recent.extend(state["recent"])
        self.since_admission, self.admitted_at = int(state["since_admission"]), int(state["admitted_at"])
        self.since_admission = min(self.since_admission, self.settings.games)
        saved = [PoolEntry(**one) for one in state["opponents"]]
        outsiders = {one.name: one for one in saved if not one.inside}
        for one in self.opponents.values():
            if one.name in outsiders:
                found = outsiders[one.name]
                one.rating, one.wins, one.draws, one.losses = found.rating, found.wins, found.draws, found.losses
        self.opponents |= {one.number: one for one in saved if one.inside}
        paths = {member_path(self.run_dir, one.number) for one in saved if one.inside}
        for path in sorted(paths):
            if not path.is_dir():
                raise CheckpointError(f"{path} is missing: the pool of this run is not complete; it cannot be resumed")
        require(pool_dir(self.run_dir), "a folder")
        self.delete_unused()  # of a launch that was killed after its last checkpoint
        while len([one for one in self.playing if one.inside]) > self.settings.pool:  # it was made smaller
            self._retire()
