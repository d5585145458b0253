"""What `POST /train` takes, as JSON Schema: the options of `RunConfig`, by name."""

from collections.abc import Mapping
from typing import Any

import strategies
from fl_app.config import RUN_NAME, RunConfig, is_auto
from fl_app.data import datasets, private
from fl_app.models import MODELS

FORBIDDEN = (
    "results-dir",
    "data-dir",
    "test-path",
    "initial-model",
    "resume",
    "regime",
)
"""Options that a request may not set: what they name lies on the service's disk."""

Schema = dict[str, Any]


def known_datasets(*, real_nodes: bool) -> list[str]:
    """Return the data sets that a request may name; nodes' own, if there are nodes."""
    return [name for name in datasets.DATASETS if real_nodes or name != private.NAME]


def of_options(declared: Mapping[str, Any], *, real_nodes: bool) -> Schema:
    """Return the schema of a training's options.

    Args:
        declared: all options, those of strategies too, with their defaults.
        real_nodes: whether trainings run on nodes that may have data of their own.
    """
    fields = RunConfig.model_json_schema(by_alias=True)["properties"]
    choices = {
        "dataset": known_datasets(real_nodes=real_nodes),
        "model": sorted(MODELS),
        "strategy": strategies.available(),
    }
    properties: Schema = {}
    for name, default in declared.items():
        if name in FORBIDDEN:
            continue
        schema = dict(fields[name]) if name in fields else _of_value(default)
        schema.pop("title", None)
        if name in choices:
            schema = {"type": "string", "enum": choices[name]}
        if name == "run-name":
            schema["pattern"] = RUN_NAME
        properties[name] = _or_auto(name, schema, default) | {"default": default}
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _of_value(default: object) -> Schema:
    """Return the type of a strategy's option, from its default."""
    return {"type": "boolean" if isinstance(default, bool) else "number"}


def _or_auto(name: str, schema: Schema, default: object) -> Schema:
    """Add the words for "as the data set's recipe has it", where they are allowed."""
    words = [word for word in ("auto", 0) if is_auto(name, word)]
    if default != "auto":
        return schema
    return {"anyOf": [schema, *({"const": word} for word in words)]}
