"""A Grid whose nodes are calls in this process: the loop without Flower's engine."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

Handler = Callable[[Message], Message | None]


class LocalGrid(Grid):
    """Nodes by id, each a function from message to reply; None stays silent.

    A node works when it is pulled, the last message first: no order can be relied on,
    and no reply exists before it is asked for. All that were asked for come at once.
    """

    def __init__(self, nodes: Mapping[int, Handler]) -> None:
        self.nodes = dict(nodes)
        self.sent: list[Message] = []
        self._waiting: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = name
            self.sent.append(message)
            self._waiting[name] = message
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ready = [name for name in message_ids if name in self._waiting]
        messages = [self._waiting.pop(name) for name in reversed(ready)]
        replies = [self.nodes[m.metadata.dst_node_id](m) for m in messages]
        return [reply for reply in replies if reply is not None]


def app_node(
    app: ClientApp,
    options: Mapping[str, Any],
    node_config: Mapping[str, Any] | None = None,
) -> Handler:
    """Return a node that runs the ClientApp; what it raises is an error reply."""

    def handle(message: Message) -> Message:
        own = dict(node_config or {})
        node = message.metadata.dst_node_id
        context = Context(1, node, own, RecordDict(), dict(options))
        try:
            return app(message, context)
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)

    return handle
