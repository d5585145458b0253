"""What `POST /train` takes, as JSON Schema: the options of `RunConfig`, by name."""

import math
from collections.abc import Mapping
from typing import Any

import strategies
from fl_app.config import RUN_NAME, ConfigError, RunConfig, is_auto, meant
from fl_app.data import datasets, private
from fl_app.models import MODELS

FORBIDDEN = (
    "results-dir",
    "data-dir",
    "test-path",
    "initial-model",
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
        if name in ("run-name", "resume"):
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
    """Add the words for "as it is best here", where they are allowed."""
    words = [word for word in ("auto", 0) if is_auto(name, word)]
    if default != "auto" and 0 not in words:
        return schema
    return {"anyOf": [schema, *({"const": word} for word in words)]}


def check(given: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Refuse what `RunConfig` does not look at, or no file can hold.

    It looks at the options of the run's own strategy, not of others.

    Args:
        given: a request's options.
        declared: all options with their defaults.

    Raises:
        ConfigError: there is no such option, or it is no number; or an option's text
            holds what no file can.
    """
    for name, value in given.items():
        if name not in declared:
            raise ConfigError(f"option {name} is unknown{meant(name, declared)}")
        if isinstance(value, str) and not value.isprintable():
            raise ConfigError(f"{name} = {value!r} is not allowed: should be text")
        if "." not in name:
            continue
        truth = isinstance(value, bool)
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or truth != isinstance(declared[name], bool):
            raise ConfigError(
                f"{name} = {value!r} is not allowed: should be like {declared[name]!r}"
            )
