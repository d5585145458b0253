"""What happens to a message on its way through a node.

Flower calls mods around the app's handler. `compress` makes the global model whole
before the handler sees it, and each client's update small after; `tell_states` adds
where the clients' states lie.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable

from fl_app import compression
from fl_app.client_states import ClientStates
from fl_app.config import RunConfig
from fl_app.workspace import Workspace, open_workspace
from strategies import wire
from strategies.randomness import keyed_generator
from strategies.wire import Arrays

UPLOAD, FEEDBACK = "compression", "feedback"


def compress(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Decode the model of a message, and encode the updates in its reply.

    A client whose update cannot be encoded is left out with the reason, as one whose
    training failed.
    """
    space = open_workspace(message, context)
    decode_model(message, space)
    reply = call_next(message, context)
    if space.config.compression != "none" and not reply.has_error():
        task = wire.take(message.content, wire.TASK, ConfigRecord)
        states = ClientStates.of(message, context, kind=FEEDBACK)
        encode_updates(reply, Encoder(space.config, task, states))
    return reply


def tell_states(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Say in the reply whether this node keeps states in a folder of its own."""
    reply = call_next(message, context)
    states = ClientStates.of(message, context)
    if states is not None and not reply.has_error():
        reply.content[wire.STATES] = ConfigRecord({wire.OWN: int(states.is_own)})
    return reply


def decode_model(message: Message, space: Workspace) -> None:
    """Put the whole model in place of an encoded one."""
    config = space.config
    if config.download_compression == "none":
        return
    from fl_app import task

    record = wire.take(message.content, wire.MODEL, ArrayRecord)
    codec = download_codec(config, task.get_arrays(space.model))
    whole = wire.pack(codec.decode(wire.unpack(record)))
    message.content = RecordDict({**message.content, wire.MODEL: whole})


def upload_codec(config: RunConfig, like: Arrays) -> compression.Codec:
    """Return the codec of what clients send; `like` is laid out as an update."""
    return compression.build(
        config.compression,
        like,
        ratio=config.compression_ratio,
        stochastic=config.compression_rounding == "stochastic",
    )


def download_codec(config: RunConfig, like: Arrays) -> compression.Codec:
    """Return the codec of what clients receive; `like` is laid out as the model.

    Rounding is to the nearest: all clients receive the same, so errors do not average
    out among them.
    """
    return compression.build(config.download_compression, like, stochastic=False)


class Encoder:
    """Encodes the updates of single clients in one round."""

    def __init__(
        self, config: RunConfig, task: ConfigRecord, states: ClientStates | None
    ) -> None:
        """Take in what a message says.

        Args:
            config: the run's options.
            task: the message's task.
            states: where what compression left out is kept; None if it is not.
        """
        self._config = config
        self._round = wire.integer(task, wire.ROUND)
        self._states = states if config.error_feedback else None
        self._known = wire.states_in(task)

    def encode(self, client: int, update: Arrays) -> Arrays:
        """Return a client's update as the block that is sent.

        With error feedback (Seide et al. 2014; Karimireddy et al. 2019,
        arXiv:1901.09847, algorithm 2) what earlier blocks have left out is added
        first, and what this one leaves out is kept.

        Raises:
            CodecError: it cannot be encoded.
            StateError: what was left out before is not there, or cannot be kept.
        """
        config = self._config
        codec = upload_codec(config, update)
        base = self._known.get(client, 0)
        owed = self._states.read(client, base) if self._states else {}
        whole = {
            name: array + owed[name] if name in owed else array
            for name, array in update.items()
        }
        draws = keyed_generator(config.seed, UPLOAD, round=self._round, client=client)
        block = codec.encode(whole, draws)
        if self._states is not None:
            sent = codec.decode(block)
            coded = compression.Layout(update).coded
            left = {t.name: whole[t.name] - sent[t.name] for t in coded}
            self._states.write(client, self._round, left, base=base)
        return block


def encode_updates(reply: Message, encoder: Encoder) -> None:
    """Put blocks in place of the updates in a reply."""
    content = reply.content
    rows = wire.find(content, wire.TRAINED, MetricRecord)
    if rows is None:
        return
    clients = [int(client) for client in _column(rows, wire.CLIENT_IDS)]
    blocks: dict[int, Arrays] = {}
    failures: dict[int, str] = {}
    for client in clients:
        name = wire.update_of(client, of=len(clients))
        update = wire.unpack(wire.take(content, name, ArrayRecord))
        del content[name]
        try:
            blocks[client] = encoder.encode(client, update)
        except Exception as error:  # of one client: the others' count all the same
            failures[client] = f"{type(error).__name__}: {error}"
    for client, block in blocks.items():
        content[wire.update_of(client, of=len(blocks))] = wire.pack(block)
    if failures:
        _leave_out(reply, rows, failures)


def _leave_out(reply: Message, rows: MetricRecord, failures: Mapping[int, str]) -> None:
    """Take clients from those that trained to those that failed."""
    clients = [int(client) for client in _column(rows, wire.CLIENT_IDS)]
    kept = [i for i, client in enumerate(clients) if client not in failures]
    del reply.content[wire.TRAINED]
    if kept:
        reply.content[wire.TRAINED] = MetricRecord(
            {key: [_column(rows, key)[i] for i in kept] for key in rows}
        )
    failed = wire.find(reply.content, wire.FAILED, ConfigRecord) or ConfigRecord()
    columns = {
        wire.CLIENT_IDS: list(failures),
        wire.REASON: list(failures.values()),
        wire.TRACEBACK: list(failures.values()),
    }
    reply.content[wire.FAILED] = ConfigRecord(
        {key: [*failed.get(key, []), *values] for key, values in columns.items()}  # type: ignore[misc]
    )


def _column(rows: MetricRecord, key: str) -> list[float]:
    return list(np.atleast_1d(rows[key]).tolist())
