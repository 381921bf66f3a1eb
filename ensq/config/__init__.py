"""The run's configuration: strict structs, loading with clear errors, digest."""

from ensq.config.digest import changed_keys, digest, dumps, loads
from ensq.config.loading import load, parse
from ensq.config.structs import RunConfig

__all__ = ["RunConfig", "changed_keys", "digest", "dumps", "load", "loads", "parse"]
