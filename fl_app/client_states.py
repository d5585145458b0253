"""What a client remembers between rounds: one file per client and round, on its node.

The files lie in the run's own folder where the node can see that one, as in a
simulation and on one machine, and any node can then train any client. A node elsewhere
keeps them in a folder of its own; the server sends a client back to the node that has
its state.
"""

import os
import re
import secrets
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message

from fl_app.artifacts import RunFolder, write_atomically
from strategies import wire
from strategies.wire import Arrays

FOLDER = "client-states"
STATE_VARIABLE = "FL_APP_STATE"
NODE_OPTION = "state-path"
_EARLIER = 2
"""Counted rounds that are kept before the newest: a run that goes on from the older of
its two checkpoints names one of them."""

_TOKEN = "token"
_NAME = re.compile(r"round-(\d{6})\.safetensors")


class StateError(RuntimeError):
    """A client's state is not there or cannot be used; the message says why."""


def prepare(folder: RunFolder) -> tuple[str, str]:
    """Return where a run's states lie, and the token that tells the place.

    Both are sent to the nodes. A run that goes on has the token it had.
    """
    states = folder.path / FOLDER
    states.mkdir(exist_ok=True)
    token = _token_in(states)
    if not token:
        token = secrets.token_hex(8)
        write_atomically(states / _TOKEN, token.encode())
    return str(states.resolve()), token


class ClientStates:
    """The states of a run's clients, as far as this node has them."""

    def __init__(
        self, folder: str, token: str, own: str = "", *, kind: str = "strategy"
    ) -> None:
        """Find the folder.

        Args:
            folder: the run's, as the server names it.
            token: what must lie in it for it to be the run's.
            own: where this node is to keep states; empty for the run's folder if it
                can be written, else $FL_APP_STATE, or the user's state folder.
            kind: whose states: a client may keep several.

        Raises:
            StateError: the server sent no token.
        """
        if not re.fullmatch(r"[0-9a-f]{16}", token):
            raise StateError(f"{token!r} is no token of a run")
        self._kind = kind
        named = Path(folder)
        seen = _token_in(named) == token and os.access(named, os.W_OK)
        self.is_own = bool(own) or not seen
        """Whether the folder is the node's own, and not the run's."""
        run = f"{named.parent.name}-{token}"
        home = Path(own).expanduser() if own else _home()
        self.folder = home / run if self.is_own else named

    @classmethod
    def of(
        cls, message: Message, context: Context, *, kind: str = "strategy"
    ) -> "ClientStates | None":
        """Return what a message says of states; None if nothing is to be remembered."""
        place = wire.find(message.content, wire.STATES, ConfigRecord)
        if place is None:
            return None
        own = str(context.node_config.get(NODE_OPTION, ""))
        return cls(str(place[wire.FOLDER]), str(place[wire.TOKEN]), own, kind=kind)

    def read(self, client: int, round: int) -> Arrays:
        """Return a client's state after a round; nothing for round 0.

        Raises:
            StateError: it is not on this node, or torn.
        """
        if round == 0:
            return {}
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self._path(client, round)
        try:
            return dict(load(path.read_bytes()))
        except FileNotFoundError:
            raise StateError(
                f"the state of client {client} after round {round} is not on this node "
                f"({path}): the client was trained on another, which must come back, "
                "or the file was removed: put it back, or start a new run"
            ) from None
        except (OSError, SafetensorError) as error:
            raise StateError(f"{path} cannot be read: {error}") from None

    def write(self, client: int, round: int, state: Arrays, *, base: int) -> None:
        """Keep a client's state after a round; forget those that are not named again.

        Args:
            client: its id.
            round: the round.
            state: what it remembers.
            base: the round of the state it began with, which the server will name
                again should this one not count; what lies between did not.

        Raises:
            StateError: the folder cannot be written.
        """
        from safetensors.numpy import save

        path = self._path(client, round)
        tensors = {name: np.asarray(a, order="C") for name, a in state.items()}
        try:
            if self.is_own:  # nobody else's business
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(tensors))
            self._forget(client, base, round)
        except OSError as error:
            raise StateError(
                f"{path} cannot be written ({error.strerror}): make room, or give the "
                f"node a folder with {NODE_OPTION} or ${STATE_VARIABLE}"
            ) from error

    def _forget(self, client: int, base: int, round: int) -> None:
        """Remove what is older than all that can be named, or between `write`'s two."""
        rounds = sorted(
            int(named[1])
            for file in self._path(client, round).parent.iterdir()
            if (named := _NAME.fullmatch(file.name))
        )
        before = [number for number in rounds if number < base]
        between = [number for number in rounds if base < number < round]
        for number in [*before[:-_EARLIER], *between]:
            self._path(client, number).unlink(missing_ok=True)

    def _path(self, client: int, round: int) -> Path:
        owner = self.folder / self._kind / f"client-{client}"
        return owner / f"round-{round:06d}.safetensors"


def _token_in(folder: Path) -> str:
    try:
        return (folder / _TOKEN).read_text()
    except (OSError, ValueError):
        return ""


def _home() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get(STATE_VARIABLE) or Path(base) / "fl-app")
