"""The spaces of several agents as one observation and one action: equal, or padded to the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfactory.envs.action_leaf import ActionSpace, mask_leaf, one_line_space
from sfactory.envs.obs_leaf import ObsReader, always_fits, obs_leaves
from sfactory.envs.saved_spec import same_space
from sfactory.envs.space_leaves import check_tuples, kept_leaves, tuples_of
from sfactory.envs.spec import ActionLeaf, Leaf
from sfactory.errors import EnvError, one_line

MASK = "action_mask"
"""Name of the mask in observations and in `info`, and of its leaf."""
AGENT_ID = "agent_id"
"""Leaf with the number of the agent, one-hot."""


class AgentSpaces:
    """Reads observations of agents into rows, and makes actions of agents from rows.

    agents: the keys of the environment's agents, in the order of their rows.
    obs, actions, mask, omitted: as in EnvSpec. The mask may be in the observation or in `info`.
    With `pad_spaces`, observations are padded with zeros, and Discrete actions with choices that the mask forbids.

    Raises EnvError for spaces that differ, or that cannot be padded.
    """

    def __init__(self, name: str, env: Any, drop: Sequence[str], agent_id: bool, pad_spaces: bool, seed: int) -> None:
        self.name = name
        self.agents: list[Any] = list(getattr(env, "possible_agents", ()) or ())
        if not self.agents:
            raise EnvError(
                f"{name}: the environment has no possible_agents; all agents that can ever act must be known"
            )
        if len(set(map(str, self.agents))) < len(self.agents):
            raise EnvError(f"{name}: every agent needs a name of its own; possible_agents is {self.agents}")
        try:
            self._obs_spaces = [env.observation_space(agent) for agent in self.agents]
            self._action_spaces = [env.action_space(agent) for agent in self.agents]
        except Exception as error:
            raise EnvError(f"{name}: the spaces of the agents cannot be read: {one_line(error)}", fault=True) from error
        equal = all(space == self._obs_spaces[0] for space in self._obs_spaces)
        equal_actions = all(space == self._action_spaces[0] for space in self._action_spaces)
        if not (equal and equal_actions) and not pad_spaces:
            self._refuse(
                self._obs_spaces if not equal else self._action_spaces, "observation" if not equal else "action"
            )
        self.observation_space = self._obs_spaces[0] if equal else None
        self.action_space = self._action_spaces[0] if equal_actions else None
        readers: list[dict[str, ObsReader]] = []
        self.omitted: dict[str, str] = {}
        for space in self._obs_spaces:
            found, omitted = obs_leaves(name, kept_leaves(name, space, drop))
            readers.append(found)
            self.omitted |= omitted
        self._readers = readers
        self._leaves = [[(leaf, reader, reader.leaf.shape) for leaf, reader in found.items()] for found in readers]
        self._tuples = [tuple(tuples_of(space)) for space in self._obs_spaces]
        self._checked: dict[int, list[Any]] = {}  # of every environment: itself and the spaces that were found equal
        self._castable: set[tuple[str, np.dtype]] = set()  # dtypes that were already checked
        self.obs = self._common_obs()
        self._action_readers = [ActionSpace(name, space) for space in self._action_spaces]
        self._choices = self._number_of_choices(equal_actions)
        self.actions = self._common_actions(equal_actions)
        self._info_mask = False
        if not self._has_mask and all(leaf.kind == "discrete" for leaf in self.actions.values()):
            self._info_mask = MASK not in drop and self._mask_in_info(env, seed)
            if self._info_mask or not equal_actions:
                self.obs[MASK] = Leaf((self._logits,), "bool")
        self.mask = mask_leaf(name, self.obs, self.actions)
        self._agent_id = agent_id
        if agent_id:
            self.obs[AGENT_ID] = Leaf((len(self.agents),), "bool")

    def _refuse(self, spaces: Sequence[Any], kind: str) -> None:
        texts: dict[str, list[str]] = {}
        for agent, space in zip(self.agents, spaces, strict=True):
            texts.setdefault(one_line_space(space), []).append(str(agent))
        parts = "; ".join(f"{', '.join(agents)}: {text}" for text, agents in texts.items())
        raise EnvError(
            f"{self.name}: the agents have different {kind} spaces, and one policy acts for all of them ({parts}); "
            "--env.pad-spaces true pads them to the largest"
        )

    @property
    def _has_mask(self) -> bool:
        return any(MASK in name.split("/") for name in self.obs)

    @property
    def _logits(self) -> int:
        return sum(sum(leaf.sizes) for leaf in self.actions.values())

    def _common_obs(self) -> dict[str, Leaf]:
        """Leaves that hold the observation of every agent."""
        leaves: dict[str, Leaf] = {}
        for agent, readers in zip(self.agents, self._readers, strict=True):
            for name, reader in readers.items():
                leaf, before = reader.leaf, leaves.get(name, reader.leaf)
                if (len(leaf.shape), leaf.dtype) != (len(before.shape), before.dtype):
                    raise EnvError(
                        f"{self.name}: {name} of {agent} is {leaf.dtype} {leaf.shape}, and of another agent "
                        f"{before.dtype} {before.shape}; only leaves of one dtype and number of axes can be padded"
                    )
                shape = tuple(max(sizes) for sizes in zip(leaf.shape, before.shape, strict=True))
                same = leaf == before
                leaves[name] = leaf if same else Leaf(shape, leaf.dtype)
        return leaves

    def _number_of_choices(self, equal: bool) -> list[int]:
        """Number of choices of each agent, where they differ."""
        if equal:
            return []
        leaves = [list(actions.leaves.values()) for actions in self._action_readers]
        if any(len(leaf) != 1 or leaf[0].kind != "discrete" or leaf[0].shape != () for leaf in leaves):
            self._refuse_padding()
        return [leaf[0].sizes[0] for leaf in leaves]

    def _refuse_padding(self) -> None:
        spaces = ", ".join(dict.fromkeys(map(one_line_space, self._action_spaces)))
        raise EnvError(f"{self.name}: these actions cannot be padded: {spaces}; only Discrete spaces can")

    def _common_actions(self, equal: bool) -> dict[str, ActionLeaf]:
        if equal:
            return self._action_readers[0].leaves
        return {"action": ActionLeaf((), "int64", "discrete", (max(self._choices),))}

    def _mask_in_info(self, env: Any, seed: int) -> bool:
        """Whether `reset` returns masks in the infos. Resets the environment."""
        try:
            _, infos = env.reset(seed=seed)
        except Exception as error:
            raise EnvError(f"{self.name} failed at its first reset: {one_line(error)}", fault=True) from error
        return isinstance(infos, Mapping) and any(isinstance(i, Mapping) and MASK in i for i in infos.values())

    def same_as(self, env: Any) -> bool:
        """Whether an environment has the same agents and spaces."""
        return (
            list(env.possible_agents) == self.agents
            and [env.observation_space(agent) for agent in self.agents] == self._obs_spaces
            and [env.action_space(agent) for agent in self.agents] == self._action_spaces
        )

    def check(self, number: int, env: Any) -> None:
        """Raise ValueError for an environment whose spaces have changed since the first one was built.

        Spaces that an environment makes in every call are compared once, others after every reset.
        """
        before = self._checked.get(number, [None])
        if before[0] is env and len(before) == 1:
            return
        agents = [agent for agent in self.agents if agent in env.possible_agents]
        now = [space for agent in agents for space in (env.observation_space(agent), env.action_space(agent))]
        if len(before) == len(now) + 1 and all(a is b for a, b in zip(before, [env, *now], strict=True)):
            return
        built = [space for pair in zip(self._obs_spaces, self._action_spaces, strict=True) for space in pair]
        if len(now) < len(built):
            raise ValueError(f"possible_agents is {list(env.possible_agents)}, and was {self.agents} when it was built")
        for at, (space, other) in enumerate(zip(now, built, strict=True)):
            if not same_space(space, other):
                kind = ("observation", "action")[at % 2]
                raise ValueError(
                    f"the {kind} space of {self.agents[at // 2]} is {one_line_space(space)}, and was "
                    f"{one_line_space(other)} when it was built; a space must not change: make it in __init__, large "
                    "enough for everything that comes"
                )
        kept = env.observation_space(self.agents[0]) is now[0]
        self._checked[number] = [env, *now] if kept else [env]

    def fill(self, obs: Mapping[str, np.ndarray]) -> None:
        """Write what never changes into arrays [E x A, ...]: the numbers of the agents, and masks without effect."""
        if self._agent_id:
            count = len(self.agents)
            obs[AGENT_ID][...] = np.tile(np.eye(count, dtype=bool), (len(obs[AGENT_ID]) // count, 1))
        if self.mask:
            obs[self.mask][...] = 1

    def write(self, obs: Mapping[str, np.ndarray], start: int, index: int, value: Any, info: Any) -> None:
        """Write the observation of an agent. Raises ValueError for a wrong shape or dtype.

        start: first row of its environment. index: number of the agent.
        """
        row = start + index
        if self._tuples[index]:
            check_tuples(value, self._tuples[index])
        for name, reader, shape in self._leaves[index]:
            array, part = obs[name], np.asarray(reader(value))
            if part.shape != shape:
                raise ValueError(f"{name} of {self.agents[index]} has shape {part.shape}, its space has {shape}")
            unknown = part.dtype is not array.dtype and (name, part.dtype) not in self._castable
            if unknown and always_fits(f"{name} of {self.agents[index]}", part, array.dtype):
                self._castable.add((name, part.dtype))
            if shape == array.shape[1:]:
                array[row] = part
            else:
                array[row] = 0
                array[row][tuple(map(slice, part.shape))] = part
        if self.mask:
            self._write_mask(obs[self.mask][row], index, info)

    def _write_mask(self, mask: np.ndarray, index: int, info: Any) -> None:
        """Complete the mask of an agent, [number of choices]. Without any choice all are allowed: it does not act."""
        if self._info_mask:
            mask[...] = 1
            if isinstance(info, Mapping) and MASK in info:
                given = np.asarray(info[MASK])
                own = self._choices[index] if self._choices else mask.size
                if given.size not in (own, mask.size) or given.ndim == 0:
                    raise ValueError(f"{MASK} of {self.agents[index]} has shape {given.shape}, expected ({own},)")
                mask[: given.size] = given.ravel() != 0
        elif not self._has_mask_leaf_of(index):
            mask[...] = 1
        if self._choices:
            mask[self._choices[index] :] = 0
        if not mask.any():
            mask[...] = 1

    def _has_mask_leaf_of(self, index: int) -> bool:
        return self.mask in self._readers[index]

    def choices(self, action: Mapping[str, np.ndarray]) -> tuple[list[Any], np.ndarray]:
        """Return one action per row, as the environment takes it, and which rows are illegal."""
        rows = len(next(iter(action.values())))
        illegal = np.zeros(rows, bool)
        if not self._choices:
            return self._action_readers[0].rows(action, illegal), illegal
        chosen: list[Any] = [None] * rows
        count = len(self.agents)
        for index, reader in enumerate(self._action_readers):
            own = slice(index, None, count)
            flags = illegal[own]  # a view
            name = next(iter(reader.leaves))
            chosen[own] = reader.rows({name: action["action"][own]}, flags)
        return chosen, illegal
