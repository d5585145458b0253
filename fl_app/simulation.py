"""A run on simulated nodes of this machine, in Flower's own engine."""

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fl_app import running
from fl_app.config import RunConfig
from fl_app.environment import CONNECTION, node_resources
from fl_app.following import RunView

if TYPE_CHECKING:
    from fl_app.submission import Connection


def run(
    console: Console,
    project: Path,
    config: RunConfig,
    given: Mapping[str, Any],
    num_nodes: int,
    view: RunView | None = None,
) -> str | None:
    """Run the simulation and show how it goes; return why it failed, or None.

    Args:
        console: where progress is shown.
        project: folder of the app.
        config: all options, checked, with a run name.
        given: the options that differ from the project's defaults.
        num_nodes: simulated nodes.
        view: where rounds are shown, if that is shared with other runs.
    """
    resources = {"num-supernodes": num_nodes, **node_resources(num_nodes)}

    command = "fl-app run"
    return running.run(
        console,
        partial(connect, project),
        project,
        config,
        given,
        resources,
        command,
        view,
    )


def connect(project: Path) -> "Connection":
    """Connect to this machine's SuperLink for simulations; start it if need be."""
    from fl_app.submission import Connection

    with contextlib.chdir(project):  # where a SuperLink started now will stay
        return Connection.named(CONNECTION)
