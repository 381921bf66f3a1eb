"""The run's configuration: strict structs, loading with clear errors, translation, digest."""

from ensq.config.digest import changed_keys, digest, dumps, loads
from ensq.config.lint import lint, report, summary_lines
from ensq.config.loading import Loaded, load, load_with_notes, parse, parse_with_notes
from ensq.config.notes import Note
from ensq.config.structs import RunConfig

__all__ = [
    "Loaded",
    "Note",
    "RunConfig",
    "changed_keys",
    "digest",
    "dumps",
    "lint",
    "load",
    "load_with_notes",
    "loads",
    "parse",
    "parse_with_notes",
    "report",
    "summary_lines",
]
