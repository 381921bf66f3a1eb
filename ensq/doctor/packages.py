"""Python and the packages: what is installed, and what ensq's metadata ask for."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ensq import __version__
from ensq.doctor.finding import Finding
from ensq.slurm import commands

SHOWN = ("jax", "jaxlib", "chemtrain", "optax", "sqlalchemy")  # also where they are in order

_OLDEST, _FIRST_TOO_NEW = (3, 11), (3, 14)
# In a child: `packaging` comes with other packages and may be missing, and the folders of all
# packages are read, which takes long on a busy network disk. jaxlib is asked for by jax alone.
_CODE = """
import json, re
from importlib import metadata
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return None
def wanted(package):
    try: return metadata.requires(package) or []
    except metadata.PackageNotFoundError: return []
print(json.dumps({"ensq": version("ensq")}), flush=True)
from packaging.requirements import Requirement
for line in [*wanted("ensq"), *wanted("jax")]:
    one = Requirement(line)
    if one.marker is None or one.marker.evaluate({"extra": ""}):
        found = version(one.name)
        fits = found is not None and one.specifier.contains(found, prereleases=True)
        print(json.dumps([one.name, found, str(one.specifier), fits]), flush=True)
"""


@dataclass(frozen=True)
class _Package:
    name: str
    version: str | None
    wanted: str  # as in >=0.4.35,<=0.4.37; may be empty
    fits: bool


def check_packages(
    environment: Mapping[str, str] = os.environ, timeout: float = commands.TIMEOUT
) -> list[Finding]:
    """Never raises."""
    answer = commands.ask((sys.executable, "-c", _CODE), environment, 3 * timeout)
    installed, packages = _read(answer.out)
    found = [_python(sys.version_info[:2]), _ensq(installed)]
    found += [_finding(packages[name]) for name in SHOWN if name in packages]
    found += [_finding(one) for one in packages.values() if one.name not in SHOWN and not one.fits]
    if answer.code != 0:
        why = f"no answer within {3 * timeout:g} s" if answer.timed_out else answer.last_words
        found.append(
            Finding(
                key="packages",
                state="unknown",
                seen=f"the versions of the packages can't be compared: {why}",
                advice="run `pip install packaging`, then `pip check`",
            )
        )
    return found


def _read(text: str) -> tuple[str | None, dict[str, _Package]]:
    """The version of ensq in its metadata, and each package once; packages may print, too."""
    installed, packages = None, dict[str, _Package]()
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            said = json.loads(line)
            if isinstance(said, dict):
                installed = said.get("ensq")
            else:
                package = _Package(*said)
                # Asked for twice, as NumPy by ensq and by jax: what does not fit counts.
                if package.name not in packages or not package.fits:
                    packages[package.name] = package
    return installed, packages


def _python(version: tuple[int, int]) -> Finding:
    seen = f"Python {platform.python_version()} ({sys.executable})"
    if _OLDEST <= version < _FIRST_TOO_NEW:
        return Finding(key="python", state="ok", seen=seen)
    return Finding(key="python", state="problem", seen=seen, advice="use Python 3.11 to 3.13")


def _ensq(installed: str | None) -> Finding:
    if installed is None:
        return Finding(
            key="ensq",
            state="unknown",
            seen=f"ensq {__version__}, not installed: what it requires is not known",
            advice="run `pip install -e .` in its folder",
        )
    if installed != __version__:
        return Finding(
            key="ensq",
            state="warning",
            seen=f"ensq {__version__}, installed as {installed}",
            advice="install it again, so that its requirements are those of this version",
        )
    return Finding(key="ensq", state="ok", seen=f"ensq {__version__}")


def _finding(package: _Package) -> Finding:
    key, advice = package.name.lower(), f'pip install "{package.name}{package.wanted}"'
    wanted = f"; needed: {package.wanted}" if package.wanted else ""
    if package.version is None:
        seen = f"{package.name} is not installed{wanted}"
    else:
        seen = f"{package.name} {package.version}{'' if package.fits else wanted}"
    if package.fits:
        return Finding(key=key, state="ok", seen=seen)
    return Finding(key=key, state="problem", seen=seen, advice=advice)
