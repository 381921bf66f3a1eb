"""HTML from values: what is not ``Html`` is escaped, so that no name or text can be markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ensq.text import escaped

_VOID = frozenset({"img", "source", "meta", "link", "br", "col"})


class Html(str):
    """Text that is markup."""

    __slots__ = ()


Content = str | Html


def text(value: object) -> Html:
    """Text for a page; control characters, which may turn the order of writing round, are shown."""
    return value if isinstance(value, Html) else Html(html.escape(escaped(str(value))))


def join(parts: Iterable[Content], between: str = "") -> Html:
    return Html(between.join(text(part) for part in parts))


def tag(name: str, /, *content: Content, **attributes: str | bool | None) -> Html:
    """An element. ``class_`` stands for class, ``_`` for ``-``; None and False leave one out."""
    found = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        shown = key.rstrip("_").replace("_", "-")
        found.append(f" {shown}" if value is True else f' {shown}="{text(value)}"')
    opening = f"<{name}{''.join(found)}>"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{join(content)}</{name}>")


def paragraph(*content: Content, class_: str | None = None) -> Html:
    return tag("p", *content, class_=class_)


def code(content: Content) -> Html:
    return tag("code", content)


def missing(*content: Content) -> Html:
    """A sentence in place of what is not there."""
    return paragraph(*content, class_="missing")


def prose(sentence: str) -> Html:
    """A sentence whose commands, between backticks, are set as such."""
    parts = sentence.split("`")
    return join(code(part) if place % 2 else part for place, part in enumerate(parts))


def stacked(value: Content, below: Content) -> Html:
    """A cell of two lines: a value, and what is said of it in small."""
    return join((value, tag("small", below))) if below else text(value)


def items(entries: Iterable[Content]) -> Html:
    return tag("ul", *(tag("li", entry) for entry in entries))


def pairs(entries: Iterable[tuple[Content, Content]]) -> Html:
    """Names with their values."""
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value)) for name, value in entries),
        class_="pairs",
    )


def table(
    head: Sequence[Content],
    rows: Sequence[Sequence[Content]],
    *,
    left: Sequence[int] = (),
    marked: Sequence[int] = (),
    caption: Content | None = None,
    label: str = "table",
) -> Html:
    """A table in a box of its own, which scrolls where it is too wide or too long.

    ``left`` columns hold words; rows ``marked`` stand out.
    """

    def cells(kind: str, row: Sequence[Content]) -> Html:
        return join(
            tag(
                kind,
                cell,
                class_="word" if column in left else None,
                scope="col" if kind == "th" else None,
            )
            for column, cell in enumerate(row)
        )

    body = [
        tag("tr", cells("td", row), class_="marked" if number in marked else None)
        for number, row in enumerate(rows)
    ]
    made = tag(
        "table",
        tag("thead", tag("tr", cells("th", head))),
        tag("tbody", join(body, "\n")),
    )
    box = tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=label)
    # above the box, since in it a long one would scroll away
    return box if caption is None else join((paragraph(caption, class_="caption"), box))


def folded(title: Content, *content: Content) -> Html:
    """What is opened by a click."""
    return tag("details", tag("summary", title), *content)
