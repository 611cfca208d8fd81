"""Try a network of the user's own in a process of its own, before anything is written or started.

It is code that is not ours, as an environment is, and needs torch, which the process of the command does not load.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfactory import pickled
from sfactory.config import Config
from sfactory.device.loading import loading_torch
from sfactory.device.ranks import Ranks
from sfactory.envs import EnvError, EnvSpec
from sfactory.errors import SettingError
from sfactory.supervisor.env_child import ChildClock
from sfactory.supervisor.env_task import run_env_task


@dataclass(frozen=True)
class NetworkJob:
    """Builds the network and computes with it."""

    config: Config
    spec: EnvSpec
    local_rank: int

    def run(self, clock: ChildClock) -> None:
        """See `env_child.Job`."""
        with loading_torch():
            from sfactory.learning.trial import try_own_network
        try_own_network(self.config, self.spec, self.local_rank)


def check_own_network(config: Config, spec: EnvSpec, ranks: Ranks) -> None:
    """SettingError for a class of `model.encoder` or `model.network` with which no run can be trained."""
    setting, name = config.model.own_code
    if not name:
        return
    what = f"{setting} {pickled.shown_name(name)}"
    try:
        run_env_task(NetworkJob(config, spec, ranks.local_rank), config.env, what=what)
    except EnvError as error:  # it ended its process, or hangs
        raise SettingError(str(error)) from error
