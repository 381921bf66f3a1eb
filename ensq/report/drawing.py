"""Figures drawn by matplotlib: SVG for the page, twice, since what is legible on a wide window is
not on a narrow one, and PNG to take along. The same numbers give the same bytes.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which people with any kind of colour
vision tell apart; a line or point never differs by its colour alone.
"""

from __future__ import annotations

import csv as _csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ensq.errors import UsageError
from ensq.report.html import Content
from ensq.report.page import Figure

BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#1b1f24"
GREY, SOFT = "#8a929b", "#57606a"
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
WIDE, SLIM = 928, 368  # px: widths that the two are drawn for
TEXT = {False: 12.0, True: 11.0}  # px, by whether the figure is narrow
MANY_POINTS = 6000  # of one drawing; above that they are pixels, so that the page stays small
_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif"
# Of text in an SVG: matplotlib has one form or the other, by its version.
_FONT = re.compile(r"(font-family: |font: (?:[a-z0-9]+ )*[0-9.]+px )[^;\"]*")

Draw = Callable[[Any, bool], None]  # what draws into a matplotlib figure; whether it is narrow


def figure(
    name: str,
    draw: Draw,
    *,
    alt: str,
    caption: Content,
    csv: str,
    height: int = 340,
    slim_height: int = 300,
) -> Figure:
    """A figure in its three forms. Heights are in px of the wide and of the narrow window.

    Raises UsageError if matplotlib is not installed.
    """
    return Figure(
        name=name,
        alt=alt,
        caption=caption,
        wide=_svg(draw, WIDE, height, False),
        narrow=_svg(draw, SLIM, slim_height, True),
        png=_png(draw, WIDE, height),
        csv=csv,
        width=WIDE,
        height=height,
    )


def panels(figure: Any, narrow: bool, count: int, **options: Any) -> list[Any]:
    """Axes beside each other, or below each other where it is narrow."""
    rows, columns = (count, 1) if narrow else (1, count)
    made = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
    return made


def rows(figure: Any, narrow: bool, count: int, columns: int, slim_columns: int = 1) -> list[Any]:
    """So many axes in rows; places that stay empty are not drawn."""
    across = slim_columns if narrow else columns
    made = list(figure.subplots(-(-count // across), across, squeeze=False).flat)
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in made[count:]:
        axes.set_axis_off()
    return made[:count]


def as_csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """CSV with all digits of numbers; nothing where there is no number.

    Texts that a spreadsheet would take for a formula begin with an apostrophe.
    """
    out = io.StringIO()
    writer = _csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        writer.writerow([_cell(value) for value in line])
    return out.getvalue()


def with_unit(name: str, unit: str) -> str:
    """The name of a column of numbers, with their unit: no file needs the page to be read.

    In ASCII: spreadsheets guess the encoding of CSV, and guess wrong.
    """
    return f"{name} [{unit.replace('Å', 'Angstrom').replace('²', '^2')}]" if unit else name


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):  # NumPy's float64 is one, too
        return repr(float(value)) if math.isfinite(value) else ""
    shown = str(value)
    if isinstance(value, str) and shown[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{shown}"
    return shown


def _settings(narrow: bool) -> dict[str, Any]:
    """matplotlib's own defaults, whatever this user's are, and ours."""
    import matplotlib

    size = TEXT[narrow]
    # Not all keys are matters of drawing; RcParams leaves a backend alone that was not chosen yet.
    plain: dict[str, Any] = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith(("backend", "interactive", "toolbar", "webagg", "date.epoch"))
    }
    return plain | {
        "font.family": ["DejaVu Sans"],
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "legend.fontsize": size - 1,
        "legend.frameon": False,
        "legend.handlelength": 1.8,
        "axes.edgecolor": GREY,
        "axes.linewidth": 0.8,
        "axes.titlelocation": "left",
        "axes.unicode_minus": True,
        "xtick.color": BLACK,
        "ytick.color": BLACK,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "grid.color": "#e3e8ed",
        "lines.linewidth": 1.4,
        "lines.markersize": 5.0,
        "axes.formatter.useoffset": False,
        "mathtext.default": "regular",
        "svg.fonttype": "none",
        "svg.hashsalt": "ensq",
        "path.simplify": True,
        "agg.path.chunksize": 20000,
    }


def _drawn(draw: Draw, width: int, height: int, narrow: bool, dpi: float) -> Any:
    """A unit of length is a point, which becomes a pixel of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05, hspace=0.05)
    made = Canvas(figsize=(width / 72, height / 72), dpi=dpi, layout=layout)
    FigureCanvasAgg(made)
    draw(made, narrow)
    return made


def _svg(draw: Draw, width: int, height: int, narrow: bool) -> bytes:
    import matplotlib

    settings: Any = _settings(narrow)
    with matplotlib.rc_context(settings):
        made = _drawn(draw, width, height, narrow, 72)
        out = io.BytesIO()
        nobody = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        made.savefig(out, format="svg", dpi=160, metadata=nobody)
    return _tidy(out.getvalue().decode(), width, height).encode()


def _tidy(svg: str, width: int, height: int) -> str:
    """The page's own fonts, a size in pixels, and no line that names a place in a network."""
    svg = _FONT.sub(rf"\g<1>{_FAMILY}", svg)
    start = svg.index("<svg ")
    body = svg[svg.index(">", start) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}'
    )


def _png(draw: Draw, width: int, height: int) -> bytes:
    import matplotlib

    settings: Any = _settings(False)
    with matplotlib.rc_context(settings):
        made = _drawn(draw, width, height, False, 144)
        out = io.BytesIO()
        made.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def require() -> None:
    """Raise UsageError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"a report needs matplotlib: pip install matplotlib ({error})") from error


def log_axis(axis: Any, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def is_log(values: Sequence[float], ratio: float = 6.0) -> bool:
    """Whether a logarithmic axis serves these numbers: all positive, and far apart."""
    some = [value for value in values if math.isfinite(value)]
    return bool(some) and min(some) > 0 and max(some) > ratio * min(some)


def limits(values: Any) -> tuple[float, float]:
    """Ends of an axis that holds all values, with a little room."""
    import numpy as np

    low, high = float(np.min(values)), float(np.max(values))
    room = 0.03 * (high - low) or 0.03 * abs(high) or 1.0
    return low - room, high + room


def density(
    axes: Any, x: Any, y: Any, across: tuple[float, float], up: tuple[float, float], cells: int
) -> Any:
    """How many points lie in each cell of a grid, on a logarithmic scale of one hue, which is
    read in grey as well; cells without a point are left white."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    counts, x_edges, y_edges = np.histogram2d(x, y, bins=cells, range=[across, up])
    shown = np.where(counts.T < 1, np.nan, counts.T)
    hue = LinearSegmentedColormap.from_list("points", ["#cfe3f1", "#56a3d0", BLUE, "#002b49"])
    return axes.pcolormesh(
        x_edges,
        y_edges,
        shown,
        cmap=hue,
        norm=LogNorm(1, max(2.0, float(counts.max()))),
        rasterized=True,
    )
