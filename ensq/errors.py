"""The errors that a person sees, each kind with the exit code of the command that meets it.

An error says what is wrong, where, and what to do next; the command line prints it as one line.
"""

EXIT_OK = 0
EXIT_JOBS_FAILED = 1
EXIT_USAGE = 2
EXIT_DATABASE = 69
EXIT_INTERRUPTED = 75
EXIT_MISMATCH = 78


class EnsqError(Exception):
    """Something that a person can put right; the text says how."""

    exit_code = EXIT_JOBS_FAILED


class UsageError(EnsqError):
    """A name, an option or a file on the command line is wrong."""

    exit_code = EXIT_USAGE


class ConfigError(EnsqError):
    """The configuration can't be read or holds a wrong key or value."""

    exit_code = EXIT_USAGE


class DataError(EnsqError):
    """The data file is missing, damaged or does not fit the configuration."""

    exit_code = EXIT_USAGE


class MismatchError(EnsqError):
    """Configuration, data or database schema differ from what was recorded."""

    exit_code = EXIT_MISMATCH


class DatabaseError(EnsqError):
    """The database can't be reached, is not ensq's, or is not safe to use."""

    exit_code = EXIT_DATABASE


class DatabaseAway(DatabaseError):
    """The database can't be reached now, and may come back: locked, restarting, disk full, stalled.

    Whether a transaction that ended so was carried out is not known; doing it again is safe.
    """


class DiskError(EnsqError):
    """Files can't be written here: disk full, quota, read-only, stale handle. Nobody's fault."""


class LeaseLost(EnsqError):
    """A fenced write matched no row: another attempt owns the job now. Publish nothing."""


class CheckpointError(EnsqError):
    """A checkpoint or result file is torn, changed or from another run."""


class ExportError(EnsqError):
    """An exported model does not give the energies and forces of the trained one."""
