"""Figures of evaluate.py and report.py."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor


def plot(
    curves: Mapping[str, Iterable[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    solid: Iterable[str] = (),
    log: bool = False,
) -> Figure:
    """Plots points (x, y) by title as curves, those not in `solid` dashed."""
    figure = Figure(figsize=(7, 4 + 0.1 * len(curves)), layout="constrained")
    axes = figure.subplots()
    for title, points in curves.items():
        style = "o-" if title in solid else "--"
        axes.plot(*zip(*sorted(points), strict=True), style, markersize=4, label=title)
    scale = "log" if log else "linear"
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale=scale, yscale=scale)
    axes.grid(alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis) if log else ():
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    if len(curves) > 1:
        columns = 2 if max(map(len, curves)) < 45 else 1
        figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def plot_images(images: Sequence[tuple[str, Tensor]], columns: int, width: float) -> Figure:
    """Plots titled uint8 images (3, H, W) side by side, each `width` inches wide."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = width * max(image.shape[1] / image.shape[2] for _, image in images) + 0.5
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    for i, (title, image) in enumerate(images, start=1):
        axes = figure.add_subplot(rows, columns, i)
        axes.imshow(image.permute(1, 2, 0).numpy())
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    return figure
