"""Where the database is: a URL or a path in, a checked place out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ensq.errors import UsageError

_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The place of a database."""

    url: URL
    path: Path | None  # the SQLite file, resolved; None for a server
    where: str  # for messages: the path, or the URL without password and query
    root: Path  # the folder that run folders are relative to

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> Target:
        """Read a path or a SQLAlchemy URL.

        Raises UsageError if it can't be a database. What follows ``sqlite:///`` is a path as it
        stands: quotes, percent signs, question marks and newlines are part of the name.
        """
        text = os.fspath(text)
        for prefix in _SQLITE:
            if text.startswith(prefix):
                return cls._sqlite(text.removeprefix(prefix))
        if "://" not in text:
            return cls._sqlite(text)
        return cls._server(text)

    @classmethod
    def _sqlite(cls, name: str) -> Target:
        if not name or name.startswith((":memory:", "file:")) or "\0" in name:
            raise UsageError(
                f"{name!r} is no file that several processes can share; "
                "give the path of a file, such as ensq.db"
            )
        # Resolved once: a later change of folder, or a link, must not lead to another file.
        path = Path(name).resolve()
        url = URL.create("sqlite+pysqlite", database=str(path))
        return cls(url=url, path=path, where=str(path), root=path.parent)

    @classmethod
    def _server(cls, text: str) -> Target:
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            # The text isn't shown, and not chained: it may hold a password.
            raise UsageError(
                "the database URL can't be read (it is not shown, since it may hold a password); "
                "it looks like postgresql://user@host/name, or is the path of a SQLite file"
            ) from None
        if url.get_backend_name() == "sqlite":
            raise UsageError("an SQLite URL needs a file: sqlite:///path, or just the path")
        if url.get_backend_name() != "postgresql":
            raise UsageError(
                f"ensq knows SQLite and PostgreSQL, not {url.get_backend_name()!r}; "
                "give a path, or postgresql://user@host/name"
            )
        where = url.set(query={}).render_as_string(hide_password=True)
        root = Path(os.environ.get("ENSQ_ROOT") or ".").resolve()
        return cls(url=url, path=None, where=where, root=root)
