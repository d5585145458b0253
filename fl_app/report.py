"""A run's report: one page that stands by itself, pictures and all."""

import base64
import json
import logging
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fl_app import environment
from fl_app.artifacts import CURVES, PARTITION, RunFolder
from fl_app.config import RunConfig
from fl_app.data import private
from fl_app.data.datasets import recipe_for
from fl_app.report_page import PAGE

log = logging.getLogger("flwr.fl_app")

_MOST_CLIENTS = 200
_MOST_FAILURES = 50
_PLACE = {"run-name", "results-dir", "resume"}
_DECIDING = ("dataset", "partitioner", "optimizer", "fraction-train", "strategy")
"""Options on which it depends what "auto" stands for."""


def write(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write report.html; one that fails is logged, and must not end a run.

    Args:
        folder: the run's, with all but its summary.
        summary: what summary.json is going to say.
    """
    try:
        folder.write_report(page(folder, summary))
    except Exception:
        log.exception("report.html could not be made")


def page(folder: RunFolder, summary: Mapping[str, Any]) -> str:
    """Return the report, as HTML that needs nothing else."""
    from jinja2 import Environment, StrictUndefined

    config = folder.config() or {}
    options = config["options"]
    rows, clients = folder.metrics(), folder.clients()
    failures = [row for row in clients if row.get("failure")]
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(PAGE)
    return template.render(
        name=folder.name,
        options=options,
        command=command(options),
        config={k: v for k, v in config.items() if k not in ("options", "resumed")},
        resumed=config.get("resumed", []),
        summary=summary,
        last=rows[-1],
        rows=rows,
        data=summary.get("data", ""),
        remarks=summary.get("remarks", []),
        figures=_figures(summary, rows),
        clients=_by_client(clients, summary.get("client_accuracy") or {})[
            :_MOST_CLIENTS
        ],
        num_clients=len({row["client"] for row in clients}),
        failures=failures[:_MOST_FAILURES],
        num_failures=len(failures),
        pictures=[(name, _inlined(folder, name)) for name in (CURVES, PARTITION)],
    )


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved options that are not what they would be by themselves."""
    declared = environment.default_options(environment.find_project())
    same = {"dataset": options["dataset"]}
    usual = RunConfig.from_options(declared | same, recipe_for).options()
    deciding = {key: usual[key] for key in _DECIDING} | {"dataset": declared["dataset"]}
    same |= {key: options[key] for key in _DECIDING}
    usual = RunConfig.from_options(declared | same, recipe_for).options() | deciding
    found = {
        key: value
        for key, value in options.items()
        if key in declared and key not in _PLACE and value != usual[key]
    }
    own = options.get("strategy-options") or {}
    named = {f"{options['strategy']}.{key}": value for key, value in own.items()}
    return found | {k: v for k, v in named.items() if v != declared.get(k)}


def command(options: Mapping[str, Any]) -> str:
    """Return the command that repeats a run with those resolved options."""
    verb = {"federated": "run", "central": "baseline"}
    kind = verb.get(str(options["regime"]), "baseline --local-only")
    said = {k: v for k, v in chosen(options).items() if k != "regime"}
    if said.get("dataset") == private.NAME:
        kind = "network --data DIR"
        del said["dataset"]
    text = " ".join(f"{key}={_toml(value)}" for key, value in said.items())
    quoted = shlex.quote(text) if "'" in text else f"'{text}'"
    return f"fl-app {kind} -c {quoted}" if text else f"fl-app {kind}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _figures(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Return what the page begins with: labels and figures."""
    accuracy, loss = summary["final_test_accuracy"], summary["final_test_loss"]
    validation = rows[-1]["validation_accuracy"]
    sent = sum(row["upload_bytes"] or 0 for row in rows)
    received = sum(row["download_bytes"] or 0 for row in rows)
    return [
        ("test accuracy", "not measured" if accuracy is None else f"{accuracy:.4f}"),
        ("test loss", "not measured" if loss is None else f"{loss:.4f}"),
        (
            "validation accuracy",
            "not measured" if validation is None else f"{validation:.4f}",
        ),
        ("rounds", str(summary["rounds"])),
        ("time", f"{summary['total_seconds']:.0f} s"),
        ("sent by clients", f"{sent / 1e6:.1f} MB"),
        ("sent to clients", f"{received / 1e6:.1f} MB"),
        ("clients left out", str(sum(row["num_failures"] for row in rows))),
    ]


def _by_client(
    rows: Sequence[Mapping[str, Any]], accuracy: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return one line a client over all rounds, in order of client.

    Args:
        rows: of clients.jsonl.
        accuracy: on each client's own validation examples, by id.
    """
    grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["client"]].append(row)
    lines = []
    for client, mine in sorted(grouped.items()):
        trained = [row for row in mine if not row.get("failure")]
        newest = trained[-1] if trained else {}
        lines.append(
            {
                "client": client,
                "name": mine[0].get("name", ""),
                "examples": newest.get("num_examples"),
                "rounds": len(trained),
                "failures": len(mine) - len(trained),
                "train_loss": newest.get("train_loss"),
                "update_norm": newest.get("update_norm"),
                "accuracy": accuracy.get(str(client)),
                "seconds": sum(row.get("seconds", 0.0) for row in trained),
            }
        )
    return lines


def _inlined(folder: RunFolder, name: str) -> str:
    """Return a picture as a data URL; "" where there is none."""
    path = folder.path / name
    if not path.exists():
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
