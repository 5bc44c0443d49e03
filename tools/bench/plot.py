"""Plots as PNG files, drawn with matplotlib, which `pip install xenpy[plots]` brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path("bench-plots")
SIZE_INCHES: Final = (8.0, 4.5)


def lines(name: str, title: str, x: str, y: str,
          series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, log: bool = False) -> Path:
    """One line a series, each given as its x and y values. The file that was written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    for label, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o", label=label)
    if log:
        axes.set_xscale("log", base=2)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    return _save(figure, name)


def bars(name: str, title: str, y: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> Path:
    """A bar for each series in each group. The file that was written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot(title=title, ylabel=y)
    width = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        axes.bar([index + number * width for index in range(len(groups))], values, width, label=label)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(groups))], groups)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend()
    return _save(figure, name)


def _save(figure: object, name: str) -> Path:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
