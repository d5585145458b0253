"""A run on real nodes, over a SuperLink that is up already."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fl_app import running
from fl_app.config import ConfigError, RunConfig
from fl_app.data import private

if TYPE_CHECKING:
    from fl_app.submission import Connection


def connect(name: str) -> "Connection":
    """Connect to a SuperLink by its name in Flower's config.toml.

    Raises:
        ConfigError: no node of it is online.
        click.ClickException: there is no such name, or it cannot be reached.
    """
    from fl_app.submission import Connection

    connection = Connection.named(name)
    if not connection.online():
        raise ConfigError(
            f"--federation {name}: no node is online; start a flower-supernode first"
        )
    return connection


def prepare(
    config: RunConfig, num_nodes: int, *, say: Callable[[str], None]
) -> RunConfig:
    """Check all that can be checked here; name the run. See `running.prepare`."""
    own_data = config.dataset == private.NAME
    return running.prepare(config, num_nodes, own_data=own_data, say=say)


def run(
    console: Console,
    connection: "Connection",
    project: Path,
    config: RunConfig,
    given: Mapping[str, Any],
    name: str,
) -> str | None:
    """Run and show how it goes; return why it failed, or None.

    The run's folder is written by the SuperLink: this machine must see it, by the same
    path.

    Args:
        console: where progress is shown.
        connection: to the SuperLink.
        project: folder of the app.
        config: all options, checked, with a run name.
        given: the options that differ from the project's defaults.
        name: of the connection, for the command that resumes the run.
    """
    command = f"fl-app run --federation {name}"
    return running.run(console, lambda: connection, project, config, given, {}, command)
