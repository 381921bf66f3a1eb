"""JAX's cache of compiled programs as a folder that many processes may write to at once.

JAX itself writes an entry in place and never replaces one that is there: who reads at that moment
gets half of it, and what a worker left that was killed meanwhile stays for good, so that everybody
compiles again, every time. Its check sum is the compression's, which not every library writes.
Here an entry appears whole or not at all, carries its SHA-256, and one that is damaged goes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".program"


class SealedCache:
    """Entries by key, as JAX's own caches have them: ``get`` and ``put``.

    A cache is only ever a gain of time: nothing that is wrong with it stops a training.
    """

    def __init__(self, folder: str) -> None:
        self._path = self.path = Path(folder)  # JAX logs the first of the names
        self._path.mkdir(parents=True, exist_ok=True)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}{_SUFFIX}"

    def get(self, key: str) -> bytes | None:
        """The entry, or None if there is none that is whole."""
        path = self._file(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _say(f"a compiled program can't be read ({error}); it is compiled again")
            return None
        value = data[_DIGEST:]
        if hashlib.sha256(value).digest() == data[:_DIGEST]:
            return value
        _say(f"the compiled program {path} is damaged; it is compiled again")
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Write an entry beside and move it into place; one that is there is as good.

        It is not flushed: what a power cut leaves of it is told by its digest.
        """
        path = self._file(key)
        try:
            if path.exists():
                return
            handle, beside = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(value).digest() + value)
                Path(beside).chmod(0o644)
                Path(beside).replace(path)
            except BaseException:
                with suppress(OSError):
                    Path(beside).unlink()
                raise
        except OSError as error:
            _say(f"a compiled program was not kept: {error}")


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def install() -> bool:
    """Have JAX use it for ``jax_compilation_cache_dir``; False where this JAX has no place for it.

    JAX's own cache stays where the user has set a size for it, since ours is never pruned.
    """
    try:
        from jax._src import compilation_cache

        if not callable(getattr(compilation_cache, "get_file_cache", None)):
            return False
    except ImportError:
        return False
    if getattr(jax.config, "jax_compilation_cache_max_size", -1) != -1:
        return False

    def sealed(path: str) -> tuple[Any, str]:
        return SealedCache(path), path

    compilation_cache.get_file_cache = sealed
    return True
