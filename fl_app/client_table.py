"""The clients' figures as a table for the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fl_app.client_figures import ClientFigures, percent

_MAX_ROWS = 40
"""Clients up to which each gets a row of its own."""


def build(
    title: str, clients: Sequence[ClientFigures], names: Sequence[str] = ()
) -> Table:
    """Return a row for each of few clients; for many, the least, median and most.

    Args:
        title: what the table is of.
        clients: the figures of each client.
        names: names of the clients; empty where they are mere numbers.
    """
    rows = len(clients) <= _MAX_ROWS
    table = _of_each(clients, names) if rows else _of_all(clients, names)
    table.title, table.title_justify = Text(title), "left"
    return table


def _of_each(clients: Sequence[ClientFigures], names: Sequence[str]) -> Table:
    table = Table()
    table.add_column("" if names else "client", justify="right", no_wrap=True)
    if names:
        table.add_column("client", overflow="fold", min_width=6, max_width=40)
    first = clients[0]
    for heading, known in (
        ("training\nexamples", True),
        ("valid-\nation", True),
        ("classes", True),
        ("bright-\nness", first.brightness is not None),
        ("median\nsize", first.median_size is not None),
        ("resized", first.resized is not None),
    ):
        if known:
            table.add_column(heading, justify="right", no_wrap=True)
    for number, client in enumerate(clients):
        named = [Text(names[number])] if names else []
        table.add_row(str(number), *named, *_cells(client))
    return table


def _cells(client: ClientFigures) -> list[str]:
    cells = [f"{client.training:,}", f"{client.validation:,}", f"{client.classes}"]
    if client.brightness is not None:
        cells.append(percent(client.brightness))
    if client.median_size is not None:
        cells.append(_size(client.median_size))
    if client.resized is not None:
        cells.append(percent(client.resized))
    return cells


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _of_all(clients: Sequence[ClientFigures], names: Sequence[str]) -> Table:
    table = Table()
    for heading in ("", "least", "median", "most"):
        table.add_column(heading, justify="right" if heading else "left")

    def add(what: str, values: list[Any], text: Callable[[Any], str]) -> None:
        if None in values:
            return
        least, most = min(values), max(values)
        ends = [text(end) + _holder(end, values, names) for end in (least, most)]
        middle = text(float(np.median(values)))
        table.add_row(what, Text(ends[0]), middle, Text(ends[1]))

    add("training examples of a client", [c.training for c in clients], _count)
    add("validation examples", [c.validation for c in clients], _count)
    add("classes of a client", [c.classes for c in clients], _count)
    add("brightness of its images", [c.brightness for c in clients], percent)
    sides = [c.median_size and min(c.median_size) for c in clients]
    add("shorter side (pixels), median", sides, _count)
    add("images resized", [c.resized for c in clients], percent)
    return table


def _count(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _holder(value: Any, values: Sequence[Any], names: Sequence[str]) -> str:
    """Say which client has this value, where it is one alone."""
    if values.count(value) > 1:
        return ""
    client = values.index(value)
    return f" ({names[client] if names else f'client {client}'})"
