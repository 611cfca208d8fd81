"""Which policies may be opponents in a run, and how they are read. Free of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfactory.config import Config
from sfactory.config.toml_file import from_toml
from sfactory.envs import EnvSpec
from sfactory.errors import CheckpointError, CommandError
from sfactory.run import checkpoint
from sfactory.run.checkpoint_files import Contents
from sfactory.run.folder import run_of
from sfactory.run.network_size import check_network_size
from sfactory.run.obs_reading import check_reading
from sfactory.run.recorded_spec import check_same_spaces, recorded_spec
from sfactory.run.trust import vouched_opponent


def check_self_play(config: Config, spec: EnvSpec) -> None:
    """ValueError, CheckpointError or CommandError if the settings of `selfplay` cannot be used for an environment."""
    if not config.selfplay.share:
        return
    if spec.rows < 2:
        raise ValueError(
            f"selfplay.share {config.selfplay.share:g} needs an environment with two agents or more; {spec.name} has "
            "one agent"
        )
    for path in config.selfplay.opponent_paths:
        check_opponent(Path(path), config, spec)


def opponent_contents(path: Path, parts: Sequence[str] = ()) -> Contents:
    """The checkpoint of an opponent: that of a folder, or the newest one of a run. CheckpointError if there is none."""
    return checkpoint.read_from(path, parts)


@contextlib.contextmanager
def opponent_code(run: Path, config: Config) -> Iterator[None]:
    """Within this context the encoder that an opponent's settings name may be imported.

    CommandError (exit 2) if they name one and this user has not trained the run, or if another module has its name.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(vouched_opponent(run, config, False, ""))
        except CommandError as error:
            reason = error.sentence.partition("; if you trust")[0]
            raise CommandError(
                error.exit_code,
                f"selfplay.opponents: {reason}; with code of its own an opponent must be a run of this user",
            ) from error
        yield


def check_opponent(path: Path, config: Config, spec: EnvSpec) -> None:
    """Raise if the policy of another run cannot play in a run with these settings and this spec."""
    contents = opponent_contents(path)
    run = run_of(contents.path)
    where = f"selfplay.opponents {path}"
    if not (run / "config.toml").is_file():
        raise CheckpointError(f"{where}: {run} has no config.toml; name a run, or a checkpoint in its folder")
    own = from_toml(run / "config.toml")
    with opponent_code(run, own):
        check_network_size(own, contents.headers["model"])
    trained = recorded_spec(contents.state) or spec  # earlier versions recorded none
    check_reading(contents.state, trained, own)
    check_same_spaces(trained, spec, where, same_game=True)
    if own.model.squash != config.model.squash:
        raise ValueError(
            f"{where}: its model.squash is {str(own.model.squash).lower()}, and actions of all seats reach the "
            f"environment in the way of this run; use --model.squash {str(own.model.squash).lower()}"
        )
    if own.model.core != "none" and (own.model.core, own.model.core_size) != (
        config.model.core,
        config.model.core_size,
    ):
        raise ValueError(
            f"{where}: its model.core {own.model.core} of {own.model.core_size} needs a memory that this run does not "
            f"have; use the same model.core and model.core-size, or an opponent without one"
        )
