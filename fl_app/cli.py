"""The command fl-app: thin subcommands over the rest."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from fl_app import __version__, environment
from fl_app.config import ConfigError, RunConfig, meant
from fl_app.environment import SetupError

cli = typer.Typer(
    help="Federated training of PyTorch image classifiers with Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
_MARKS = {True: ("green", "ok"), False: ("red", "wrong"), None: ("yellow", "note")}


def _say_version(wanted: bool) -> None:
    if wanted:
        console.print(f"fl-app {__version__}", highlight=False)
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Take what stands before a subcommand."""


RunConfigArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config",
        "-c",
        help="Options as `flwr run` takes them: 'dataset=\"mnist\" num-clients=8'. "
        "All are in [tool.flwr.app.config] of pyproject.toml.",
    ),
]

RootCertificates = Annotated[
    str, typer.Option(help="With --server: the authority's certificate.")
]


@cli.command()
def setup(
    server: Annotated[
        str,
        typer.Option(help="HOST:PORT of a SuperLink: `flwr run . deployment` for it."),
    ] = "",
    root_certificates: RootCertificates = "certificates/ca.crt",
) -> None:
    """Prepare this machine for `flwr run . local-simulation`; safe to repeat."""
    root = Path(root_certificates)
    if server:
        from fl_app import reach

        reach.check(server, root_certificates)
    changed = environment.setup(environment.find_project(), server, root)
    for what in changed:
        console.print(f"wrote {what}", soft_wrap=True)
    if not changed:
        console.print("already set up")


@cli.command()
def run(
    run_config: RunConfigArguments = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="Simulated nodes. Default: one a GPU, or else one a core."),
    ] = None,
    quantization: Annotated[
        bool, typer.Option("--quantization", help='Short for compression="int8".')
    ] = False,
    federation: Annotated[
        str,
        typer.Option(help="Real nodes: name of a SuperLink in Flower's config.toml."),
    ] = "",
) -> None:
    """Train a federation, simulated on this machine, and draw its curves."""
    from fl_app import deployment, following, running, server_app, simulation

    if federation and nodes is not None:
        raise ConfigError("--federation has the nodes it has: leave --nodes out")
    num_nodes = environment.default_nodes() if nodes is None else nodes
    environment.check_nodes(num_nodes)
    project = environment.find_project()
    environment.setup(project)
    config, given = resolve(run_config)
    if quantization:
        if given.get("compression", "int8") != "int8":
            raise ConfigError(
                '--quantization is short for compression = "int8", and -c says '
                f"{given['compression']!r}: give one of them"
            )
        config, given = resolve(['compression="int8"', *(run_config or [])])
    for option in running.without_effect(config, given):
        _note(f"{option} has no effect with strategy = {config.strategy!r}")
    server_app.check_regime(config)
    connection = deployment.connect(federation) if federation else None
    if connection:
        num_nodes = connection.online()
    prepare = deployment.prepare if connection else running.prepare
    config = prepare(config, num_nodes, say=_say)
    _note(running.remark(config, num_nodes))
    if not connection:
        _note(running.remark_on_precision(config))
    _end_with(
        deployment.run(console, connection, project, config, given, federation)
        if connection
        else simulation.run(console, project, config, given, num_nodes)
    )
    folder = running.folder_of(config)
    following.print_result(console, folder)


@cli.command()
def network(
    run_config: RunConfigArguments = None,
    nodes: Annotated[
        int | None, typer.Option(help="SuperNodes to start. Default: 3.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Give each folder in this one to a node of its own.")
    ] = "",
) -> None:
    """Train over a real SuperLink and SuperNodes on this machine, with TLS and keys."""
    from fl_app import following, running
    from fl_app import network as networks

    if data and nodes is not None:
        raise ConfigError("--data starts a node for each folder: leave --nodes out")
    environment.check_nodes(3 if nodes is None else nodes)
    project = environment.find_project()
    environment.setup(project)
    assumed: dict[str, Any] = {}
    if data:
        folder = Path(data).expanduser().resolve()
        configs = networks.owning(folder)
        assumed = networks.options_for(folder)
        command = f"fl-app network --data {shlex.quote(data)}"
    else:
        configs = networks.sharing(nodes or 3)
        command = f"fl-app network --nodes {len(configs)}"
    config, given = resolve(run_config, assumed)
    config = running.prepare(config, len(configs), own_data=bool(data), say=_say)
    _note(running.remark(config, len(configs)))
    _note(running.remark_on_precision(config))
    failure = networks.run(console, project, config, given, configs, command)
    _end_with(failure)
    following.print_result(console, running.folder_of(config))


@cli.command()
def baseline(
    run_config: RunConfigArguments = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Each client alone, sharing nothing.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the data. Default: as many steps."),
    ] = None,
) -> None:
    """Train without federation: the same data, model and number of gradient steps."""
    from fl_app import baseline as training
    from fl_app import following

    regime = training.LOCAL_ONLY if local_only else training.CENTRAL
    config, _ = resolve([*(run_config or []), f'regime="{regime}"'])
    folder = training.run(console, training.named(config), epochs)
    following.print_result(console, folder)


@cli.command()
def sweep(
    run_config: Annotated[
        list[str],
        typer.Option(
            "--run-config",
            "-c",
            help='Options, lists too: \'strategy=["fedavg","fedprox"] seed=[0,1,2]\'.',
        ),
    ],
    name: Annotated[
        str, typer.Option(help="What its runs' names begin with.")
    ] = "sweep",
    nodes: Annotated[
        int | None,
        typer.Option(help="Simulated nodes. Default: one a GPU, or else one a core."),
    ] = None,
    tail: Annotated[
        int, typer.Option(min=0, help="Compare also over so many last rounds.")
    ] = 0,
    output: Annotated[
        str, typer.Option(help="Folder of the comparison. Default: results/NAME.")
    ] = "",
) -> None:
    """Run every combination of options, or what is left of it, and compare."""
    from fl_app import running
    from fl_app import sweep as sweeping

    environment.setup(environment.find_project())
    cells = sweeping.grid(run_config, name)
    for said in {running.remark_on_precision(cell.config) for cell in cells}:
        _note(said)
    num_nodes = environment.default_nodes() if nodes is None else nodes
    failures = sweeping.run(
        console, cells, num_nodes, output or f"results/{name}", tail
    )
    _end_with(*failures)


@cli.command()
def data(
    run_config: RunConfigArguments = None,
    output: Annotated[
        str, typer.Option(help="Folder for the pictures.")
    ] = "results/data",
) -> None:
    """Show who owns what: labels and sizes of the clients, examples, measured skew."""
    from fl_app import describing

    folder = describing.write(console, resolve(run_config)[0], output)
    for path in sorted(folder.glob("*.png")):
        console.print(str(path), soft_wrap=True, highlight=False)


@cli.command()
def certificates(
    server: Annotated[
        list[str] | None,
        typer.Option(help="Name or address of the server; repeat for several."),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Name of a node; repeat for several.")
    ] = None,
    folder: Annotated[str, typer.Option(help="Where the files go.")] = "certificates",
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
) -> None:
    """Make the authority, the server's certificate and nodes' keys of a federation."""
    from fl_app import certificates as making

    if not server and not node:
        raise ConfigError("give --server HOST, --node NAME, or both")
    path = Path(folder).expanduser()
    for made in making.make(path, hosts=server or [], nodes=node or [], days=days):
        private = ", private" if made.suffix == ".key" else ""
        console.print(f"wrote {made}{private}", soft_wrap=True, highlight=False)


@cli.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of runs, or their names in results/.")
    ],
    tail: Annotated[
        int, typer.Option(min=0, help="Average also over so many last rounds.")
    ] = 0,
    output: Annotated[
        str, typer.Option(help="Folder for comparison.md and comparison.png.")
    ] = "results/comparison",
) -> None:
    """Put finished runs side by side: mean and deviation over seeds, one picture."""
    from fl_app import comparing

    folder = comparing.write(console, runs, tail, output)
    console.print(f"written to {folder}", soft_wrap=True, markup=False)


@cli.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    results_dir: Annotated[
        str, typer.Option(help="Folder of runs, or relative to the project's.")
    ] = "results",
    data_dir: Annotated[
        str, typer.Option(help="Folder of data sets, as the option data-dir.")
    ] = "",
    federation: Annotated[
        str,
        typer.Option(help="Train on real nodes: a SuperLink in Flower's config.toml."),
    ] = "",
    make_token: Annotated[
        bool, typer.Option("--make-token", help="Make a token if none is set; say it.")
    ] = False,
) -> None:
    """Serve the runs, and predictions of their models, over HTTP."""
    from fl_app.config import project_path
    from fl_app.serving import service
    from fl_app.serving.app import Settings

    project = environment.find_project()
    environment.setup(project)
    results = project_path(results_dir, "--results-dir")
    service.check(results, data_dir, host, port)
    token = service.token(console, host, port, make=make_token)
    settings = Settings(results, project, data_dir, token, federation)
    service.serve(settings, host, port)


@cli.command()
def doctor(
    run_config: RunConfigArguments = None,
    server: Annotated[
        str, typer.Option(help="HOST:PORT: examine the way to a server instead.")
    ] = "",
    root_certificates: RootCertificates = "certificates/ca.crt",
) -> None:
    """Say what is wrong with the set-up: versions, cores, data, ports, folders."""
    from fl_app import doctor as examination
    from fl_app import reach

    if server:
        findings = reach.examine(server, root_certificates)
    else:
        project = environment.find_project()
        findings = examination.examine(project, lambda: resolve(run_config)[0])
    wrong = False
    for finding in findings:
        style, mark = _MARKS[finding.ok]
        console.print(f"{mark:>5}  ", style=style, end="")
        console.print(finding.what, soft_wrap=True, markup=False, highlight=False)
        wrong = wrong or finding.ok is False
    if wrong:
        raise typer.Exit(1)


def _say(line: str) -> None:
    """Print a line as it stands."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _note(said: str) -> None:
    """Print what whoever started this may want to know; nothing for ""."""
    if said:
        console.print(f"note: {said}", soft_wrap=True, markup=False, highlight=False)


def _end_with(*failures: str | None) -> None:
    """Print what failed and end the command; go on if nothing did."""
    said = [failure for failure in failures if failure is not None]
    for failure in said:
        console.print(failure, soft_wrap=True, markup=False, highlight=False)
    if said:
        raise typer.Exit(1)


def resolve(
    arguments: list[str] | None, assumed: Mapping[str, Any] = MappingProxyType({})
) -> tuple[RunConfig, dict[str, Any]]:
    """Return the run's options, and those given on the command line.

    Args:
        arguments: what was given with `--run-config`.
        assumed: options that count as given where they are not; a resumed run has
            its own.

    Raises:
        ConfigError: one is unknown or not allowed.
    """
    from fl_app import resuming, submission
    from fl_app.data.datasets import recipe_for

    options = environment.default_options(environment.find_project())
    try:
        given = submission.parse_options(arguments)
    except click.ClickException:
        typed = " ".join(arguments or [])
        raise ConfigError(
            f"-c/--run-config cannot be read: {typed}; values are TOML: "
            'strings in quotes (strategy="fedprox"), true and false in small letters, '
            "each option once"
        ) from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"-c/--run-config cannot be read: {error}") from None
    for key in given:
        if key not in options:
            raise ConfigError(f"option {key} is unknown{meant(key, options)}")
    if given.get("resume"):
        return resuming.resolve(given, options), given
    given = {**assumed, **given}
    return RunConfig.from_options(options | given, recipe_for), given


def main() -> None:
    """Run the command; errors that a user can mend take one line on stderr."""
    try:
        environment.enter(environment.find_project())
        status = cli(standalone_mode=False)
    except (ConfigError, SetupError) as error:
        sys.exit(f"error: {error}")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status)
