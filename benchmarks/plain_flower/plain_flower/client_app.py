"""The client: trains and evaluates as a message asks."""

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

from plain_flower import task

app = ClientApp()


def _set_threads(context: Context) -> None:
    if context.run_config["num-threads"]:
        torch.set_num_threads(int(context.run_config["num-threads"]))


def _batches(context: Context) -> tuple[DataLoader, DataLoader]:
    return task.load_client(
        str(context.run_config["data"]),
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
        int(context.run_config["batch-size"]),
        float(context.run_config["held-out"]),
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on this client's data."""
    start = time.monotonic()
    _set_threads(context)
    model = task.build_model(str(context.run_config["data"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    options = context.run_config
    batches, _ = _batches(context)
    loss = task.train(
        model, batches, int(options["local-epochs"]), float(options["learning-rate"])
    )
    metrics = {
        "train-loss": loss,
        "seconds": time.monotonic() - start,
        "num-examples": len(batches.dataset),
    }
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received model on this client's held-out data."""
    _set_threads(context)
    model = task.build_model(str(context.run_config["data"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    _, batches = _batches(context)
    loss, accuracy = task.test(model, batches)
    metrics = {
        "eval-loss": loss,
        "eval-acc": accuracy,
        "num-examples": len(batches.dataset),
    }
    content = RecordDict({"metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)
