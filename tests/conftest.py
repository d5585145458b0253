"""Fixtures shared by all tests: options, a private data cache, Flower's identity."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.task_identity import TaskIdentity

from fl_app import environment
from fl_app.config import RunConfig
from fl_app.data import cache, datasets
from tests.pictures import clinics

__all__ = ["clinics"]  # a fixture

PROJECT = Path(__file__).parent.parent
SHARED_DATA = PROJECT.parent / "shared" / "data"
"""Real MNIST and CIFAR-10 as Parquet, where a developer keeps them."""

LONG = ("faults", "machines", "kills", "cases", "notebook", "image", "device")
"""Markers of tests that run only where `-m` names them."""


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave out what takes minutes, unless it was asked for."""
    asked = config.option.markexpr

    def is_left_out(item: pytest.Item) -> bool:
        return any(item.get_closest_marker(m) and m not in asked for m in LONG)

    left_out = [item for item in items if is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


Configure = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _flower_identity() -> None:
    """Outside a run, Flower's messages need an identity to be made."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ[cache.CACHE_VARIABLE] = str(tmp_path_factory.mktemp("cache"))


def default_options() -> dict[str, Any]:
    return environment.default_options(PROJECT)


def make_config(**changes: Any) -> RunConfig:
    """Return the default options with some of them changed (snake_case)."""
    given = {name.replace("_", "-"): value for name, value in changes.items()}
    return RunConfig.from_options(default_options() | given, datasets.recipe_for)


@pytest.fixture
def configure() -> Configure:
    return make_config
