"""Names of message types, records and keys that cross the wire, and array packing.

Every name is kebab-case and used by both halves of an algorithm; nothing else in
the project spells one out.
"""

import io
from collections.abc import Mapping
from math import inf, prod
from typing import Any, TypeAlias, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]
"""Named tensors of a model (or of an update to one), in the model's own order."""

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)

# Message types.
QUERY = "query"  # what does this node host?
TRAIN = "train"  # validate the global model, then train these clients
EVALUATE = "evaluate"  # validate only

# Records.
MODEL = "model"  # ArrayRecord: the global model, server -> node
TASK = "task"  # ConfigRecord: what to do in this round, server -> node
OPTIONS = "options"  # ConfigRecord: the run's options as the server resolved them
AGREED = "agreed"  # ConfigRecord: what holds for the data of all nodes, server -> node
STRATEGY = "strategy"  # ConfigRecord: options for the strategy's client half
BESIDE = "beside"  # ArrayRecord: arrays beside the model, server -> node
STATES = "states"  # ConfigRecord: where clients keep their states, both ways
SUM = "sum"  # ArrayRecord: exact weighted sum of several clients' updates
UPDATE = "update"  # ArrayRecord: one client's update; see `update_of`
TRAINED = "trained"  # MetricRecord: one list entry per client counted in
VALIDATED = "validated"  # MetricRecord: one list entry per client validated
FAILED = "failed"  # ConfigRecord: one list entry per client left out
NOT_VALIDATED = "not-validated"  # ConfigRecord: likewise, of validation alone
HOSTED = "hosted"  # ArrayRecord: what a node hosts, the answer to a query
FASTEST = "fastest"  # ConfigRecord: CLIENTS_TOGETHER, the answer to TRY_TOGETHER
DESCRIBED = "described"  # ConfigRecord: a node's own data, the answer to a first query

# Keys.
JSON = "json"
ROUND = "round"
TRAIN_IDS = "train-client-ids"
EVALUATE_IDS = "evaluate-client-ids"
COHORT_SIZE = "cohort-size"
BUDGET = "budget"  # seconds a node may work on the message, from its arrival
SINGLE_UPDATES = "single-updates"  # 1: send each client's update, not their sum
NUM_NODES = "num-nodes"
CLIENTS_TOGETHER = "clients-together"  # how many a node trains at once
TRY_TOGETHER = "try-clients-together"  # how many to try at most
WAITING = "waiting-folder"  # where simulated nodes write what clients wait for them
CLIENT_IDS = "client-ids"
NUM_EXAMPLES = "num-examples"
LABEL_COUNTS = "label-counts"
LEVEL_COUNTS = "level-counts"
OWN_VALIDATION = (
    "own-validation"  # examples of clients' own splits; 0 where there is none
)
LOSS = "loss"
NUM_CORRECT = "num-correct"
ONLY_CLASS = "only-class"  # that the model said of all examples; -1 if several
SECONDS = "seconds"
STEPS = "steps"  # of the local optimiser
EPOCHS = "local-epochs"  # per client to train, in the order of their ids
STATE_ROUNDS = "state-rounds"  # per client of the message, in the order of their ids
FOLDER = "folder"
TOKEN = "token"
OWN = "own"  # 1: a node keeps states in a folder of its own
UPDATE_NORM = "update-norm"
REASON = "reason"
TRACEBACK = "traceback"


def pack(arrays: Mapping[str, np.ndarray[Any, Any]]) -> ArrayRecord:
    """Return the arrays as a record that can be sent; their order is kept."""
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})


def unpack(record: ArrayRecord) -> Arrays:
    """Return the arrays of a record, as read-only views of its bytes.

    Raises:
        ValueError: an array is not in NumPy's own format, or its header promises
            another number of bytes than there are; nothing is allocated by its word.
    """
    return {name: _read(name, array) for name, array in record.items()}


def _read(name: str, array: Array) -> np.ndarray[Any, Any]:
    file = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, column_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # the header is Python source that NumPy parses
        raise ValueError(f"array {name!r} is not in NumPy's format") from error
    start = file.tell()
    if dtype.hasobject or len(array.data) - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"array {name!r} has other bytes than its header says")
    values = np.frombuffer(array.data, dtype, offset=start)
    return values.reshape(shape, order="F" if column_order else "C")


def update_of(client: int, of: int) -> str:
    """Return the name of the record with that client's update, one of so many."""
    return UPDATE if of == 1 else f"{UPDATE}/{client}"


def num_bytes(content: RecordDict) -> int:
    """Size of a message's content in bytes, names and metadata included."""
    return sum(record.count_bytes() for record in content.values() if len(record) > 0)


def integer(record: ConfigRecord, key: str) -> int:
    """Return a record's integer.

    Raises:
        ValueError: it is none.
    """
    value = record[key]
    if not isinstance(value, int):
        raise ValueError(f"{key} must be an integer, got {value!r}")
    return value


def budget_in(task: ConfigRecord) -> float:
    """Return the seconds that a node may work; infinite where nothing is said."""
    value = task.get(BUDGET, inf)
    return value if isinstance(value, float) else inf


def integers(record: ConfigRecord, key: str) -> list[int]:
    """Return a record's list of integers; a key that is not there is an empty list."""
    values = record.get(key, [])
    if not isinstance(values, list):
        raise ValueError(f"{key} must be a list, got {values!r}")
    return [int(value) for value in values]


def states_in(task: ConfigRecord) -> dict[int, int]:
    """Return the round whose state each client of a message is to take.

    Raises:
        ValueError: they are not as many as the clients.
    """
    rounds = integers(task, STATE_ROUNDS)
    clients = {*integers(task, TRAIN_IDS), *integers(task, EVALUATE_IDS)}
    return dict(zip(sorted(clients), rounds, strict=True)) if rounds else {}


def take(content: RecordDict, name: str, kind: type[R]) -> R:
    """Return a record of the given kind.

    Flower's typed views (`content.array_records` and such) put the content into a
    reference cycle, and its arrays then stay in memory until Python looks for cycles.

    Raises:
        ValueError: there is none of that name and kind.
    """
    record = find(content, name, kind)
    if record is None:
        raise ValueError(f"the message lacks the record {name!r}")
    return record


def find(content: RecordDict, name: str, kind: type[R]) -> R | None:
    """Return a record of the given kind; None where there is none of that name.

    Raises:
        ValueError: the record is of another kind.
    """
    if name not in content:
        return None
    record = content[name]
    if not isinstance(record, kind):
        raise ValueError(f"record {name!r} is no {kind.__name__}")
    return record
