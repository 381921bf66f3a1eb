"""What exactly was trained on what: the configuration, digests and versions."""

from __future__ import annotations

from collections.abc import Sequence

from ensq.config.output import to_yaml
from ensq.report import html
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.page import Section

ANCHOR, TITLE = "configuration", "Configuration"


def section(known: Known) -> Section:
    entries: list[tuple[Content, Content]] = [("ensemble", known.name)]
    if known.data_path is not None:
        entries.append(("data", html.code(known.data_path)))
    entries += [
        ("SHA-256 of the data", html.code(known.data_digest)),
        ("SHA-256 of the configuration", html.code(known.config_digest)),
    ]
    entries += _versions(known)
    if known.exported is not None:
        entries.append(("export folder", html.code(known.exported.name)))
    parts: list[Content] = [html.pairs(entries)]
    parts.append(
        html.folded(
            "the full configuration (YAML)",
            html.tag("pre", to_yaml(known.config), tabindex="0"),
        )
    )
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


def _versions(known: Known) -> Sequence[tuple[Content, Content]]:
    """Of the packages that trained; more than one line where members differ."""
    found: dict[str, list[int]] = {}
    for result in known.results:
        text = ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
        if text:
            found.setdefault(text, []).append(result.seed)
    if len(found) == 1:
        return [("trained with", next(iter(found)))]
    return [
        (f"trained with (seeds {', '.join(map(str, seeds))})", text)
        for text, seeds in found.items()
    ]
