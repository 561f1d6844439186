"""Bar charts of the results, as SVG, with matplotlib (of the ``bench`` extra)."""
from __future__ import annotations

from math import ceil, floor, log10
from pathlib import Path
from textwrap import fill

from .measure import Table, shown

OURS, OTHERS = "#1f6f8b", "#b8c4c9"
ACROSS = 4
"""The most groups of bars beside each other."""


def draw(table: Table, machine: str, folder: Path) -> Path:
    """Draw a table: a group of bars for each load, with the spread of the rounds; return the file."""
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    pyplot.rcParams["svg.hashsalt"] = "threaded_echo"  # the same results make the same file
    measured = [row for row in table.rows if table.key in row.figures]
    loads = list(dict.fromkeys(row.load for row in measured))
    across = min(ACROSS, len(loads))
    down = ceil(len(loads) / across)
    figure, axes = pyplot.subplots(down, across, figsize=(3.4 * across + 1.4, 2.9 * down), squeeze=False, sharey=True,
                                   sharex=table.logarithmic)
    for unused in axes.flat[len(loads):]:
        unused.set_visible(False)
    peers = list(dict.fromkeys(row.peer for row in measured))[::-1]
    for place, load in zip(axes.flat, loads):
        rows = {row.peer: row for row in measured if row.load == load}
        for height, peer in enumerate(peers):
            if peer in rows:
                values = rows[peer].figures[table.key]
                median = rows[peer].median(table.key)
                place.barh(height, median, color=OURS if peer.startswith("threaded_echo") else OTHERS,
                           xerr=[[median - min(values)], [max(values) - median]], error_kw={"lw": 0.8, "alpha": 0.6})
                place.annotate(shown(median), (median, height), xytext=(3, 5), textcoords="offset points",
                               fontsize=7)
        place.set_yticks(range(len(peers)), peers)
        place.set_title(fill(load, 36), fontsize=9)
        if table.logarithmic:
            place.set_xscale("log")
            # Such a scale has no zero: all bars begin at the same power of ten.
            everything = [value for row in measured for value in row.figures[table.key] if value > 0] or [1.0]
            place.set_xlim(10 ** floor(log10(min(everything))), max(everything) * 8)
        else:
            place.margins(x=0.22)
        place.tick_params(labelsize=8)
        place.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{table.title}: {table.unit}", fontsize=10)
    figure.text(0.5, 0.005, machine, ha="center", fontsize=6, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path = folder / f"{table.name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
