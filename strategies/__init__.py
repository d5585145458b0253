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

_OF_TRAINING = {"optimizer", "momentum"}
"""Options that local training reads, whether or not the strategy does too."""


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
        ValueError: the constructor refuses a value, or an own one is no number as it
            should be.
    """
    parameters = _parameters(name)
    for option, value in own_options.items():
        kind = parameters[option].annotation if option in parameters else None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind in (int, float) and not number:
            raise ValueError(f"{name}.{option} must be a number, got {value!r}")
    chosen = {k: v for k, v in options.items() if k in parameters} | dict(own_options)
    return load(name)(**{k.replace("-", "_"): v for k, v in chosen.items()})


def of_others(name: str) -> set[str]:
    """Return the options, kebab-case, that are read for strategies but not this one."""
    others = {option for other in available() for option in options_of(other)}
    return others - options_of(name) - _OF_TRAINING


def options_of(name: str) -> set[str]:
    """Return the options, kebab-case, that a strategy's constructors name."""
    return set(_parameters(name))


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a strategy's constructors, by their options."""
    return {
        parameter.name.replace("_", "-"): parameter
        for base in reversed(load(name).__mro__[:-1])
        for parameter in inspect.signature(base).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
