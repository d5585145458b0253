"""The server: Flower's own FedAvg, and the time of each round."""

import json
import time
from itertools import pairwise
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from plain_flower import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, evaluate the global model after each round, note the times."""
    slowest: list[float] = []
    ends: list[float] = []
    evaluations: list[float] = []
    data = str(context.run_config["data"])
    accuracies: list[float] = []

    def combine(records: list[RecordDict], weight: str) -> MetricRecord:
        metrics = [next(iter(record.metric_records.values())) for record in records]
        slowest.append(max(float(metric["seconds"]) for metric in metrics))
        total = sum(metric[weight] for metric in metrics)
        loss = sum(metric[weight] * metric["train-loss"] for metric in metrics) / total
        return MetricRecord({"train-loss": loss})

    batches = task.load_test(data)

    def evaluate(round: int, arrays: ArrayRecord) -> MetricRecord:
        start = time.monotonic()
        model = task.build_model(data)
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = task.test(model, batches)
        accuracies.append(accuracy)
        ends.append(time.monotonic())
        evaluations.append(ends[-1] - start)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy = FedAvg(
        fraction_evaluate=1.0 if context.run_config["evaluate"] else 0.0,
        min_available_nodes=3,
        train_metrics_aggr_fn=combine,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.build_model(data).state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    whole = [end - start for start, end in pairwise(ends)]
    found = {
        "whole_seconds": whole,  # with the server's evaluation
        "seconds": [a - b for a, b in zip(whole, evaluations[1:], strict=True)],
        "evaluation_seconds": evaluations[1:],
        "training": slowest,
        "accuracy": accuracies,
    }
    Path(str(context.run_config["output"])).write_text(json.dumps(found))
