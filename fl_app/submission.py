"""Starts, follows and stops runs through Flower's Control API.

It uses modules of Flower that are not its public API: in-process they
take milliseconds where each `flwr` command takes a second of a core, which the
simulation needs. They are those of the release that pyproject.toml admits.
"""

import contextlib
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.typing import SuperLinkConnection
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.common.config import parse_config_args
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.utils import simulation_config_from_json


@dataclass(frozen=True)
class Status:
    """Where a run stands: `state` as Flower words it, `details` if it failed."""

    state: str
    sub_state: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.state == "finished"

    @property
    def completed(self) -> bool:
        """Whether the run has ended well."""
        return self.finished and self.sub_state == "completed"


class Connection:
    """The way to a SuperLink's Control API."""

    def __init__(self, connection: SuperLinkConnection) -> None:
        """Raises: click.ClickException: the SuperLink cannot be reached."""
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its own doings
            self._client = init_http_client_from_connection(connection)

    @classmethod
    def named(cls, name: str) -> "Connection":
        """Connect by a name in Flower's config.toml; a local SuperLink is started.

        Raises:
            click.ClickException: there is none, or it cannot be reached.
        """
        return cls(read_superlink_connection(name))

    @classmethod
    def to(cls, address: str, authority: Path) -> "Connection":
        """Connect to HOST:PORT over TLS, trusting that authority's certificate."""
        trusted = str(authority)
        return cls(
            SuperLinkConnection("fl-app", address=address, root_certificates=trusted)
        )

    def register(self, public_key: Path, name: str) -> int:
        """Register a node's key; return the id that the node will have."""
        key = load_ssh_public_key(public_key.read_bytes())
        request = RegisterNodeRequest(
            public_key=public_key_to_bytes(key),  # type: ignore[arg-type]
            name=name,
        )
        with flwr_cli_exc_handler():
            return int(self._client.RegisterNode(request).node_id)

    def online(self) -> int:
        """Return how many nodes are there."""
        with flwr_cli_exc_handler():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return sum(node.status == "online" for node in nodes)

    def start(
        self, project: Path, options: Mapping[str, Any], simulation: Mapping[str, Any]
    ) -> int:
        """Submit the app; return the run's id in Flower.

        Args:
            project: folder of the app.
            options: the run's options that differ from the defaults.
            simulation: number of simulated nodes and the resources of one; empty where
                nodes are real.
        """
        bundle = build_bundle(project)
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(options)),
            federation="",
        )
        if simulation:
            described = {k.replace("-", "_"): v for k, v in simulation.items()}
            request.override_federation_config.CopyFrom(
                simulation_config_from_json(described)
            )
        with flwr_cli_exc_handler():
            return int(self._client.StartRun(request).run_id)

    def status(self, run_id: int) -> Status:
        """Return where the run stands."""
        with flwr_cli_exc_handler():
            response = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        status = response.run_dict[run_id].status
        return Status(status.status, status.sub_status, status.details)

    def stop(self, run_id: int) -> None:
        """Stop the run."""
        with flwr_cli_exc_handler():
            self._client.StopRun(StopRunRequest(run_id=run_id))


def build_bundle(project: Path) -> bytes:
    """Return the app bundle that `flwr build` makes, in a fraction of its time.

    Flower looks at every file below the project's folder, a virtual environment's tens
    of thousands too, to keep a few dozen; here only the packages are looked at.
    """
    packages = [path.parent for path in project.glob("*/__init__.py")]
    places = [
        *project.glob("*.*"),
        project / "LICENSE",
        *(path for package in packages for path in package.rglob("*.py")),
    ]
    files = {
        path.relative_to(project).as_posix(): path for path in places if path.is_file()
    }
    return build_fab_from_files(files)[0]


def parse_options(arguments: list[str] | None) -> dict[str, Any]:
    """Return the options in `-c 'key=value ...'` arguments, read as `flwr run` does.

    Raises:
        ValueError: a part is no `key=value`; Flower would pass over it in silence.
        click.ClickException: a value is not TOML.
    """
    pair = re.compile(r"\S+?=('[^']*'|\"[^\"]*\"|\S+)")
    for argument in arguments or []:
        rest = pair.sub("", argument).strip()
        if rest and not argument.endswith(".toml"):
            raise ValueError(f"{rest!r} is no key=value (without blanks around the =)")
    return dict(parse_config_args(arguments))
