"""One picture of what `make bench` found."""

from collections.abc import Mapping
from typing import Any


def draw(found: Mapping[str, Any], names: Mapping[str, str]) -> bytes:
    """Return a PNG: seconds of a round by case and side; growth with the clients."""
    from fl_app import plots

    figure = plots.new_figure(10, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    cases = found.get("cases", {})
    kinds = [kind for kind in names if any(kind in sides for sides in cases.values())]
    height = 0.8 / max(1, len(kinds))
    for place, kind in enumerate(kinds):
        at = [row + place * height for row, s in enumerate(cases.values()) if kind in s]
        long = [sides[kind]["seconds"] for sides in cases.values() if kind in sides]
        bars = left.barh(at, long, height, label=names[kind])
        left.bar_label(bars, fmt=_shown, padding=2, fontsize=7)
    left.set_yticks([row + 0.4 - height / 2 for row in range(len(cases))], list(cases))
    left.invert_yaxis()
    left.set_xscale("log")
    longest = max(
        (s["seconds"] for sides in cases.values() for s in sides.values()), default=1
    )
    ticks = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t <= longest]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.minorticks_off()
    left.set_xlim(0.2, 1.6 * longest)  # and room for the last figure
    left.set_xlabel("seconds of a round")
    left.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    grown = list(found.get("growth", {}).values())
    if grown:
        clients = [each["clients"] for each in grown]
        right.plot(clients, [each["seconds"] for each in grown], "o-")
        right.set_xscale("log")
        right.set_ylim(bottom=0)
        right.set_xlabel("clients a round, of 50,000 images together")
        right.set_ylabel("seconds of a round")
        memory = right.twinx()
        memory.plot(
            clients, [e["peak_bytes"] / 1e9 for e in grown], "s--", color="grey"
        )
        memory.set_ylim(0, 1.2 * max(e["peak_bytes"] / 1e9 for e in grown))
        memory.set_ylabel("peak memory of all processes, GB (dashed)")
    return plots.to_png(figure)


def _shown(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"
