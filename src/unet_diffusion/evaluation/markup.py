"""A page as one HTML file that needs nothing else, and the same as Markdown."""

import base64
import html
import io
import re
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from unet_diffusion.data.image_folder import decode
from unet_diffusion.data.sources import UnreadableImageError

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
tr:hover td { background: var(--faint); }
figure { display: inline-block; margin: 1rem 1.5rem 0 0; max-width: 100%; vertical-align: top; }
figure img, figure svg { max-width: 100%; height: auto; }
figure img { image-rendering: pixelated; }
@media (max-width: 600px) { figure:has(img) { max-width: 45%; margin-right: .5rem; } }
figcaption { font-size: .9rem; overflow-wrap: anywhere; }
"""
_INK = "#010203"
_SHEET_COLUMNS = 6
_TALLEST = 4  # times its width, that a picture on a sheet is shown in full
_MOST_PIXELS = 1 << 24


class Table:
    """Rows of text under a head.

    Args:
        head: a title for each column.
        best: for columns by their number, `min` or `max`: which of their values is bold.
    """

    def __init__(self, head: Sequence[str], best: Mapping[int, Callable[[Sequence[float]], float]] | None = None) -> None:
        self.head = list(head)
        self._best = best or {}
        self._rows: list[tuple[list[str], bool]] = []

    def row(self, *cells: str, ranked: bool = True) -> None:
        """One more row; one that is not `ranked` is never the best."""
        if len(cells) != len(self.head):
            raise ValueError(f"{len(cells)} cells under {len(self.head)} titles")
        self._rows.append((list(cells), ranked))

    def cells(self) -> list[list[tuple[str, bool]]]:
        """Each row's texts, and whether they are the best of their column (of two or more)."""
        bold = {}
        for column, best in self._best.items():
            values = [float(row[column]) for row, ranked in self._rows if ranked and row[column]]
            bold[column] = best(values) if len(values) > 1 else None
        return [
            [(text, ranked and bool(text) and bold.get(i) is not None and float(text) == bold[i]) for i, text in enumerate(row)]
            for row, ranked in self._rows
        ]


class Page:
    """Collects sections, tables, plots and images in the order they are to be read."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._html: list[str] = []
        self._markdown: list[str] = []
        self._files: dict[str, bytes] = {}

    def section(self, title: str, text: str) -> None:
        self._html.append(f"<h2>{html.escape(title)}</h2>" + (f"<p>{html.escape(text)}</p>" if text else ""))
        self._markdown.append(f"## {_plain(title)}" + (f"\n\n{_plain(text)}" if text else ""))

    def table(self, table: Table) -> None:
        rows = table.cells()
        head = "".join(f"<th>{html.escape(title)}</th>" for title in table.head)
        cells = [
            [f"<td><b>{html.escape(text)}</b></td>" if best else f"<td>{html.escape(text)}</td>" for text, best in row]
            for row in rows
        ]
        body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
        self._html.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
        lines = [[_plain(title) for title in table.head], ["---", *["---:"] * (len(table.head) - 1)]]
        lines += [[f"**{_plain(text)}**" if best else _plain(text) for text, best in row] for row in rows]
        self._markdown.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def plot(self, caption: str, figure: Figure) -> None:
        """A plot: drawn in the page's own ink, so that it can be read in light and dark."""
        for axes in figure.axes:
            for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
                text.set_color(_INK)
            axes.tick_params(colors=_INK)
            for spine in axes.spines.values():
                spine.set_edgecolor(_INK)
        for legend in figure.legends:
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(_INK)
        drawing = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
            figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
        svg = drawing.getvalue()
        svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
        self._html.append(f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>")
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
        self._picture(caption, stream.getvalue())

    def images(self, title: str, captions: Sequence[str], files: Sequence[Path]) -> None:
        """PNGs with a caption of one or more lines each: one by one on the page, on one sheet for Markdown."""
        readable = []
        for caption, file in zip(captions, files, strict=True):
            try:
                picture = decode(file, _MOST_PIXELS).expand(3, -1, -1)
            except UnreadableImageError:
                continue
            image = Image.fromarray(picture.permute(1, 2, 0).numpy())
            readable.append((caption, image))
            stream = io.BytesIO()  # written anew, as a file may hold more than its picture
            image.save(stream, "png", optimize=True)
            source = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
            words = "<br>".join(html.escape(line) for line in caption.splitlines())
            alt = html.escape(caption.splitlines()[0])
            self._html.append(f'<figure><img src="{source}" alt="{alt}"><figcaption>{words}</figcaption></figure>')
        if readable:
            self._picture(title, _sheet(readable))

    def write(self, folder: Path) -> list[Path]:
        """Writes `report.html`, `report.md` and the pictures that the latter shows into a folder; returns the two."""
        pictures = folder / "report_files"
        shutil.rmtree(pictures, ignore_errors=True)
        pictures.mkdir(parents=True)
        for name, content in self._files.items():
            (pictures / name).write_bytes(content)
        title = html.escape(self.title)
        page = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n" + "\n".join(self._html) + "\n</body></html>\n"
        )
        markdown = "\n\n".join([f"# {_plain(self.title)}", *self._markdown]) + "\n"
        for name, text in (("report.html", page), ("report.md", markdown)):  # a file's name may hold what is no text
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        return [folder / "report.html", folder / "report.md"]

    def _picture(self, caption: str, content: bytes) -> None:
        plain = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode()
        words = re.sub(r"[^A-Za-z0-9.]+", "-", plain).strip("-")[:60]
        name = f"{words}.png" if f"{words}.png" not in self._files else f"{words}-{len(self._files)}.png"
        self._files[name] = content
        self._markdown.append(f"![{_plain(caption)}](report_files/{name})")


def _sheet(images: Sequence[tuple[str, Image.Image]]) -> bytes:
    """Images side by side, some in a row, their captions below; a PNG."""
    rows = -(-len(images) // _SHEET_COLUMNS)
    columns = -(-len(images) // rows)
    height = min(_TALLEST, max(image.height / image.width for _, image in images))
    figure = Figure(figsize=(2.7 * columns, rows * (2.7 * height + 0.6)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for one in axes:
        one.axis("off")
    for one, (caption, image) in zip(axes, images, strict=False):
        one.imshow(image, interpolation="nearest")
        one.set_title(caption, y=-0.02, va="top", fontsize=10)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    return stream.getvalue()


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is; it takes no underscore inside a word for a sign."""
    return re.sub(r"([\\\\|`*<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)
