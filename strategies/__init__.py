"""The algorithms: one file each, server half and client half together.

A strategy is a file in this folder that sets `STRATEGY`; the file's name, with dashes
for underscores, is its value for the option `strategy`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.fedavg import FedAvg

_SUPPORT = {
    *(
        "aggregation",
        "algorithm",
        "difference",
        "federation",
        "interfaces",
        "known_states",
        "norm_limit",
    ),
    *("randomness", "replies", "requests", "robust", "round_loop"),
    *("server_optimizer", "stragglers", "wire"),
}


def available() -> list[str]:
    """Return the names of all strategies, sorted."""
    names = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(name.replace("_", "-") for name in names - _SUPPORT)


def load(name: str) -> "type[FedAvg]":
    """Return the strategy class of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in available():
        known = ", ".join(available())
        raise ValueError(f"strategy = {name!r} is unknown; there are: {known}")
    strategy: type[FedAvg] = importlib.import_module(
        f"strategies.{name.replace('-', '_')}"
    ).STRATEGY
    return strategy


def build(
    name: str, options: Mapping[str, Any], own_options: Mapping[str, Any]
) -> "FedAvg":
    """Return the strategy of that name with those options its constructors name.

    Args:
        name: the strategy.
        options: all options of the run, kebab-case; each is passed to the constructor
            (of the class or of those it extends) that has a parameter of its name.
        own_options: the strategy's own table of options; every one must be known.

    Raises:
        TypeError: an own option is unknown, or one is missing.
        ValueError: the constructor refuses a value, or an own one is no number.
    """
    for option, value in own_options.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}.{option} must be a number, got {value!r}")
    known = options_of(name)
    chosen = {k: v for k, v in options.items() if k in known} | dict(own_options)
    return load(name)(**{k.replace("-", "_"): v for k, v in chosen.items()})


def of_others(name: str) -> set[str]:
    """Return the options, kebab-case, that only constructors of others name."""
    others = {option for other in available() for option in options_of(other)}
    return others - options_of(name)


def options_of(name: str) -> set[str]:
    """Return the options, kebab-case, that a strategy's constructors name."""
    return {
        parameter.replace("_", "-")
        for base in load(name).__mro__[:-1]
        for parameter in inspect.signature(base).parameters
    }
