"""Files that carry a digest of themselves, so that they can be verified without any database.

The file's text holds the mark and 64 zeros, in its header; sealing puts the SHA-256 of the whole
file, zeros included, in the place of the zeros. A seal finds damage; it is no signature, and says
nothing of who wrote the file.
"""

from __future__ import annotations

import hashlib

_MARK = b"ensq-seal-sha256:"
_DIGITS = 64
PLACEHOLDER = (_MARK + b"0" * _DIGITS).decode()  # of letters that JSON, once or twice, leaves alone
KEY = "seal"  # of the JSON object whose first value is the placeholder


def seal(data: bytes) -> bytes:
    """The data with their seal in the place of the placeholder.

    Raises ValueError if the first mark in the data is not a placeholder: the writer has to see to
    it that no text of anybody else's comes before.
    """
    start = data.find(_MARK)
    end = start + len(PLACEHOLDER)
    if start < 0 or data[start:end] != PLACEHOLDER.encode():
        raise ValueError("there is no place for the seal")
    digest = hashlib.sha256(data).hexdigest().encode()
    return b"".join((data[: start + len(_MARK)], digest, data[end:]))


def is_whole(data: bytes) -> bool:
    """Whether the data are, to the bit, what was sealed. Only the first mark counts."""
    start = data.find(_MARK)
    if start < 0:
        return False
    end = start + len(PLACEHOLDER)
    view = memoryview(data)  # no copy: a checkpoint may be large
    digest = hashlib.sha256(view[:start])
    digest.update(PLACEHOLDER.encode())
    digest.update(view[end:])
    return data[start + len(_MARK) : end] == digest.hexdigest().encode()
