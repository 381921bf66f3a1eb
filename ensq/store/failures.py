"""What an error of the database means: will waiting help, may the transaction be done again?"""

from __future__ import annotations

import re
import sqlite3

from ensq.errors import DatabaseAway, DatabaseError
from ensq.store.target import Target

# PostgreSQL's codes (its manual, appendix A): those after which the same transaction may succeed
# at once, and those for which a server that is in use, full or restarting needs some time.
_AGAIN = frozenset(("40001", "40P01", "57P01", "57P02", "57P05", "25P03"))
_AWAY = frozenset(("53100", "53200", "53300", "55P03", "57014", "57P03", "57P04", "25006"))
_AWAY_CLASSES = ("08", "53", "58")  # connection, resources, system
# Without a code, as when no connection is made: these don't pass by waiting.
_FOR_GOOD = re.compile(
    r"authentication failed|no password supplied|(role|database) .* does not exist|pg_hba\.conf"
    r"|permission denied|not permitted to log in|certificate|does not support SSL"
    r"|is not currently accepting connections|invalid|unsupported",
    re.IGNORECASE,
)
_UNKNOWN_HOST = re.compile(r"not known|no address associated", re.IGNORECASE)


class Dropped(DatabaseAway):
    """The transaction broke off in a way that says nothing against doing it again at once."""


def is_busy(error: BaseException) -> bool:
    """Whether SQLite gave up since another process holds a lock."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain_sqlite(
    error: Exception, target: Target, *, patience: float, known: bool
) -> DatabaseError:
    """The error to raise for one of SQLite. ``known``: the file was open and in order before."""
    where, code = target.where, _code(error)
    name = getattr(error, "sqlite_errorname", None) or str(error)
    if is_busy(error):
        return DatabaseAway(
            f"{where}: database is locked: another process kept it locked for more than "
            f"{patience:g} s; see who has it open (`fuser {where}`), then try again"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return DatabaseError(f"{where} is not an SQLite database; name another file with --db")
    if code == sqlite3.SQLITE_CORRUPT:
        return DatabaseError(f"{where}: the database is damaged ({error}); restore a copy")
    if code == sqlite3.SQLITE_FULL:
        return DatabaseAway(f"{where}: the disk or a quota is full ({error}); make room")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL):
        return DatabaseAway(f"{where}: the file system gives an error ({name}); see that it works")
    if code == sqlite3.SQLITE_READONLY:
        if known:
            return DatabaseAway(
                f"{where}: can't be written any more ({error}); see whether the file system was "
                "mounted read-only"
            )
        return DatabaseError(f"{where}: can't be written ({error}); see its owner and mode")
    if code == sqlite3.SQLITE_CANTOPEN and known:
        return DatabaseAway(f"{where}: can't be opened any more ({name}); is the disk still there?")
    return DatabaseError(f"{where}: {_line(error)}")


def explain_os(error: OSError, target: Target) -> DatabaseAway:
    """The error to raise where the file of an open database can't be looked at."""
    return Dropped(
        f"{target.where}: can't be reached now ({error.strerror or error}); "
        "see that its file system works"
    )


def explain_server(
    error: Exception, target: Target, *, dropped: bool, known: bool
) -> DatabaseError:
    """The same for PostgreSQL. ``dropped``: there was a connection, and it broke."""
    where, text, state = target.where, _safe(error, target), getattr(error, "sqlstate", None)
    if state in _AGAIN:
        return Dropped(f"{where}: the server broke off the transaction ({text}); try again")
    if state is not None and (state in _AWAY or state[:2] in _AWAY_CLASSES):
        return DatabaseAway(f"{where}: the server can't serve now ({text}); try again later")
    if dropped:
        return Dropped(f"{where}: the connection was lost ({text}); see that the server runs")
    if state is not None or not _is_operational(error):
        return DatabaseError(f"{where}: {text}{_advice(state, text, target)}")
    if _FOR_GOOD.search(text) or (_UNKNOWN_HOST.search(text) and not known):
        return DatabaseError(f"{where}: {text}{_advice(state, text, target)}")
    return DatabaseAway(
        f"{where}: the server can't be reached ({text}); see that it runs and that this host may "
        "connect to it"
    )


def _advice(state: str | None, text: str, target: Target) -> str:
    if state in ("28P01", "28000") or "password" in text:
        return (
            "; put the password in ~/.pgpass (host:port:database:user:password, chmod 600), or in "
            "PGPASSWORD"
        )
    if state == "3D000" or re.search(r"database .* does not exist", text):
        return f"; an administrator makes it with `createdb {target.url.database}`"
    if _UNKNOWN_HOST.search(text):
        return "; see the name of the host"
    return ""


def _is_operational(error: Exception) -> bool:
    return any(kind.__name__ == "OperationalError" for kind in type(error).__mro__)


def _safe(error: Exception, target: Target) -> str:
    """The driver's words as one line, and without the password, should it ever be among them."""
    text = _line(error)
    return text.replace(str(target.url.password), "***") if target.url.password else text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
