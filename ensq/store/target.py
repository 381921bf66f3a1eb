"""Where the database is: a URL or a path in, a checked place out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ensq.errors import UsageError

_DRIVER = "postgresql+psycopg"
_PASSWORDS = ("password", "sslpassword")
_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The place of a database."""

    url: URL = field(repr=False)  # may hold a password
    path: Path | None  # the SQLite file, resolved; None for a server
    where: str  # for messages: the path, or the URL without driver, password and query
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
        if url.get_backend_name() not in ("postgresql", "postgres"):
            raise UsageError(
                f"ensq knows SQLite and PostgreSQL, not {url.get_backend_name()!r}; "
                "give a path, or postgresql://user@host/name"
            )
        if url.drivername not in ("postgresql", "postgres", _DRIVER):
            raise UsageError(
                f"ensq talks to PostgreSQL by psycopg, not by {url.drivername.split('+')[-1]!r}; "
                "write postgresql:// without a driver"
            )
        url = _with_password_in_its_place(url.set(drivername=_DRIVER))
        shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
        root = Path(os.environ.get("ENSQ_ROOT") or ".").resolve()
        return cls(url=url, path=None, where=shown.render_as_string(), root=root)

    @property
    def text(self) -> str:
        """The path or URL by which another process opens it; it may hold a password."""
        if self.path is not None:
            return str(self.path)
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @property
    def has_password(self) -> bool:
        """Whether the URL holds a password, which must not stand in a command line."""
        return self.url.password is not None or any(name in self.url.query for name in _PASSWORDS)


def _with_password_in_its_place(url: URL) -> URL:
    """``?password=…`` as the URL's password, which SQLAlchemy hides, unlike the query."""
    given = url.query.get("password")
    if given is None:
        return url
    text = given if isinstance(given, str) else given[-1]
    return url.difference_update_query(["password"]).set(password=text)
