"""Holds the import direction and a few habits that a review would otherwise repeat."""

import ast
import inspect
from pathlib import Path

import pytest

import strategies
from tests.conftest import PROJECT

# Each layer may import from those before it, and from within itself where marked.
STRATEGY_LAYERS = [
    {"wire", "randomness"},
    {"difference"},
    {"aggregation", "federation", "known_states", "stragglers"},
    {"norm_limit"},
    {"replies", "requests"},
    {"interfaces"},
    {"algorithm"},
    {"round_loop"},
    {"fedavg"},
    {"robust", "server_optimizer"},
    {"fedprox", "fedmedian", "trimmed_mean", "fedbn"},
    {"fedavgm", "fedadam", "fedyogi", "fednova"},
    {"scaffold"},
]
APP_LAYERS = [
    {"compression.layout"},
    {"compression.half", "compression.quantised"},
    {"compression.sparse"},
    {"models", "compression"},
    {"config", "startup", "processes", "warm", "waking", "ray_processes"},
    {"kernels", "softmax", "batches", "resident"},
    {"convolutional"},
    {
        "optim",
        "gradients",
        "schedules",
        "spread",
        "lettering",
        "client_figures",
        "data.augment",
        "data.partition",
        "data.cache",
        "data.synthetic",
    },
    {"data.tree", "data.pixels", "data.progress"},
    {"data.account", "data.tables", "data.splits"},
    {"data.layouts", "data.lots", "data.metadata", "data.parquet"},
    {"task", "data.decoding", "data.folders", "provenance", "plots"},
    {"data.owners", "data.sources"},
    {"data.reading", "artifacts", "comparison_picture", "together"},
    {"partition_picture", "client_table"},
    {"environment", "report_page", "data_pictures", "brightness_picture"},
    {"comparison"},
    {"tables"},
    {"comparing"},
    {"data.datasets", "callbacks"},
    {"data.private", "best", "tracking"},
    {"report", "remarks"},
    {"checkpoints"},
    {"serving.request_schema"},
    {"resuming", "serving.catalogue", "serving.images", "serving.predictor"},
    {"serving.schemas", "serving.guards"},
    {"workspace", "rounds", "client_states", "work_stealing"},
    {"client_work", "mods"},
    {"at_once"},
    {"announcing"},
    {"client_app", "server_app", "following", "submission", "certificates"},
    {"running", "doctor", "album"},
    {"simulation", "network", "deployment", "reach", "baseline", "describing"},
    {"serving.jobs"},
    {"serving.states"},
    {"serving.run_routes", "serving.predict_routes", "serving.train_routes"},
    {"serving.app"},
    {"serving.service", "sweep"},
    {"cli"},
]


def sources(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


def module_of(path: Path, package: str) -> str:
    return ".".join(path.relative_to(PROJECT / package).with_suffix("").parts)


def imports(path: Path, *, typing: bool = False) -> set[str]:
    """Return dotted names of what a file imports, `if TYPE_CHECKING` left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        guard = isinstance(node, ast.If) and isinstance(node.test, ast.Name)
        if guard and node.test.id == "TYPE_CHECKING" and not typing:  # type: ignore[attr-defined]
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def layer_of(name: str, layers: list[set[str]]) -> int | None:
    """Return the layer of `module` or `module.attribute`."""
    for index, modules in enumerate(layers):
        if any(name == m or name.startswith(f"{m}.") for m in modules):
            return index
    return None


@pytest.mark.parametrize(
    ("package", "layers"), [("strategies", STRATEGY_LAYERS), ("fl_app", APP_LAYERS)]
)
def test_imports_go_downward(package: str, layers: list[set[str]]) -> None:
    for path in sources(package):
        module = module_of(path, package)
        if module.endswith("__init__"):
            continue
        own = layer_of(module, layers)
        assert own is not None, f"{module} has no layer yet: give it one here"
        for name in imports(path):
            if not name.startswith(f"{package}."):
                continue
            other = layer_of(name.removeprefix(f"{package}."), layers)
            if other is not None:
                assert other < own, f"{path} imports {name}, which is not below it"


def test_strategies_know_nothing_of_the_app() -> None:
    for path in sources("strategies"):
        assert not any(name.startswith("fl_app") for name in imports(path, typing=True))


@pytest.mark.parametrize(
    "module",
    [
        *("task", "together", "optim", "batches", "gradients", "models", "plots"),
        *("convolutional", "kernels", "softmax"),
    ],
)
def test_torch_and_plots_know_nothing_of_flower(module: str) -> None:
    names = imports(PROJECT / "fl_app" / f"{module}.py", typing=True)
    assert not any(name.split(".")[0] == "flwr" for name in names)


def test_flower_internals_are_used_in_three_files() -> None:
    private = ("flwr.cli.", "flwr.common", "flwr.proto", "flwr.supercore", "flwr.super")
    users = {
        path.name
        for path in [*sources("fl_app"), *sources("strategies")]
        if any(name.startswith(private) for name in imports(path))
    }
    assert users == {"submission.py", "environment.py", "warm.py"}


def test_only_config_reads_the_run_config() -> None:
    readers = {
        path.name
        for path in sources("fl_app")
        if "context.run_config" in path.read_text()
    }
    assert readers == {"workspace.py", "server_app.py"}
    for name in readers:  # which hand it over whole
        text = (PROJECT / "fl_app" / name).read_text()
        assert "run_config[" not in text
        assert "run_config.get" not in text


def test_no_global_state_and_no_dumping_ground() -> None:
    for path in [*sources("fl_app"), *sources("strategies")]:
        assert path.stem not in {"utils", "helpers", "common", "misc"}
        tree = ast.parse(path.read_text())
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), path


def test_every_option_is_declared_once_and_read() -> None:
    from fl_app.config import RunConfig
    from tests.conftest import default_options

    declared = {key for key in default_options() if "." not in key}
    fields = {name.replace("_", "-") for name in RunConfig.model_fields}
    assert declared == fields - {"strategy-options"}
    read = {
        node.attr  # config.<option>, or space.config.<option>
        for path in sources("fl_app")
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and "config" in ast.unparse(node.value)
    }
    for name in strategies.available():  # handed to constructors by name
        for base in strategies.load(name).__mro__[:-1]:
            read |= set(inspect.signature(base).parameters)
    assert set(RunConfig.model_fields) <= read
