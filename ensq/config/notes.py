"""What ensq has to say about a configuration, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# translated: a key of the older form and what became of it; no_effect: a key that changes nothing
# here; trap: what the older code did with it, or with the data, and ensq does not;
# hint: in the file's own terms, something that is probably not what was meant.
Kind = Literal["translated", "no_effect", "trap", "hint"]


@dataclass(frozen=True)
class Note:
    """One remark on a key, in dot notation."""

    kind: Kind
    key: str
    text: str


@dataclass
class Notes:
    """Remarks in the order in which they came up."""

    found: list[Note] = field(default_factory=list)

    def translated(self, key: str, text: str) -> None:
        self.found.append(Note("translated", key, text))

    def no_effect(self, key: str, text: str) -> None:
        self.found.append(Note("no_effect", key, text))

    def trap(self, key: str, text: str) -> None:
        self.found.append(Note("trap", key, text))

    def hint(self, key: str, text: str) -> None:
        self.found.append(Note("hint", key, text))
