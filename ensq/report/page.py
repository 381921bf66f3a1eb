"""The whole page: sections, contents, and one file of HTML that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ensq.report.html import Content, Html, join, paragraph, tag

NARROW = 760  # px of the window, up to which figures are those for narrow ones
_STYLE = Path(__file__).with_name("style.css")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing for wide and for narrow windows, as a picture of its own, and its numbers."""

    name: str  # of its files
    alt: str  # what one sees, for those who don't
    caption: Content
    wide: bytes  # SVG
    narrow: bytes  # SVG
    png: bytes
    csv: str
    width: int  # px of the wide one
    height: int

    def markup(self, prefix: str) -> Html:
        """The figure on the page; ``prefix`` begins the names of the files beside it."""
        csv = f"{prefix}-{self.name}.csv"
        picture = tag(
            "picture",
            tag("source", media=f"screen and (max-width: {NARROW}px)", srcset=_inline(self.narrow)),
            tag("img", src=_inline(self.wide), alt=self.alt, decoding="async"),
        )
        numbers = tag("span", "Numbers: ", tag("a", csv, href=quote(csv)), class_="numbers")
        return tag("figure", picture, tag("figcaption", self.caption, " ", numbers))


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading and what stands below it; a figure stands where the body names it."""

    anchor: str
    title: str
    body: tuple[Content | Figure, ...]
    tables: tuple[tuple[str, str], ...] = ()  # more numbers for files: name, CSV

    @property
    def figures(self) -> list[Figure]:
        return [part for part in self.body if isinstance(part, Figure)]

    def markup(self, prefix: str) -> Html:
        heading = tag(
            "h2",
            self.title,
            tag(
                "a",
                "#",
                href=f"#{self.anchor}",
                class_="anchor",
                aria_label=f"link to {self.title}",
            ),
        )
        parts = [
            part.markup(prefix) if isinstance(part, Figure) else Html(part) for part in self.body
        ]
        return tag("section", heading, join(parts, "\n"), id=self.anchor)


def page(title: str, lead: Content, sections: Sequence[Section], foot: Content, prefix: str) -> str:
    """The HTML file."""
    contents = tag(
        "nav",
        tag(
            "ol",
            *(tag("li", tag("a", one.title, href=f"#{one.anchor}")) for one in sections),
        ),
        aria_label="contents",
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light"),
        tag("title", f"{title}: report"),
        tag("link", rel="icon", href="data:,"),  # else a browser asks for one
        Html(f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>"),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), paragraph(lead, class_="lead")),
        contents,
        tag("main", join((section.markup(prefix) for section in sections), "\n")),
        tag("footer", paragraph(foot)),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def _inline(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
