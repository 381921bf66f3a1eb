"""Text for people: tables and numbers in at most 80 columns, and nothing that drives a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

# Control characters, which move the cursor or rename the window; formats, among them those that
# turn the order of writing round; halves of characters; separators of lines.
_HARMFUL = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def escaped(text: str) -> str:
    """The text with its control characters as JSON writes them (``\\u001b``); lines stay lines.

    JSON means the same afterwards.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _HARMFUL else _escape(c) for c in text
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


class Guarded:
    """A text stream that shows control characters instead of obeying them.

    Names and values in what ensq prints come from files, which may be anybody's: configurations,
    data, databases, logs. All else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream  # for who draws on the terminal on purpose

    def write(self, text: str) -> int:
        self.unguarded.write(escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()
) -> list[str]:
    """Lines of a table, columns as wide as their widest cell; ``left`` ones are left-aligned.

    Columns stand two places apart, or one where a terminal of 80 columns would break the lines.
    """
    everything = [head, *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(head))]
    gap = "  " if sum(widths) + 2 * len(widths) <= 80 else " "
    lines = []
    for row in everything:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((gap + gap.join(cells)).rstrip())
    return lines


def counted(number: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def wrapped(line: str) -> list[str]:
    """Lines of 80 columns, those after the first indented."""
    import textwrap

    return textwrap.wrap(line, 80, subsequent_indent="  ")


def with_error(value: float, error: float) -> str:
    """``0.16 ± 0.07``: a value to the digits that its standard error has, which is given to two."""
    if error <= 0 or not 1e-4 <= error < 1e6:
        return f"{value:.3g} ± {error:.2g}"
    shown = float(f"{error:.2g}")
    digits = max(0, 1 - math.floor(math.log10(shown)))
    return f"{value:.{digits}f} ± {shown:.{digits}f}"


def ranges(numbers: Sequence[int]) -> str:
    """Numbers with runs drawn together: ``42-45, 50``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
