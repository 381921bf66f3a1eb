"""Looks at folders and databases from a child process with a time limit.

A file system whose server is away stops whoever asks it for anything, and nothing ends the one who
waits. So a child asks, and tells each finding as a line of JSON as soon as it has it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import ensq
from ensq.doctor.finding import Finding
from ensq.slurm import commands

LIMIT = 60.0  # seconds: for imports from a busy disk, a busy database, and a sign of life

# -P: no module of the working folder passes for one of Python's; nor one that lies beside ensq,
# which therefore comes last.
_CODE = "import sys; sys.path.append(sys.argv[1]); from ensq.doctor import apart; apart.main()"
_CHILD = (sys.executable, "-P", "-c", _CODE, str(Path(ensq.__file__).parent.parent))


def check_places(url: str, timeout: float = LIMIT, child: Sequence[str] = _CHILD) -> list[Finding]:
    """What ``places.check_places`` finds. Never raises, and never hangs."""
    return _ask({"what": "places", "url": url}, "folder", timeout, child)


def check_scratch(
    environment: Mapping[str, str] = os.environ,
    timeout: float = commands.TIMEOUT,
    child: Sequence[str] = _CHILD,
) -> list[Finding]:
    """Whether the folder for temporary files can be used. Never raises, and never hangs."""
    name = next((name for name in ("TMPDIR", "TEMP", "TMP") if environment.get(name)), None)
    folder = environment[name] if name else "/tmp"
    told = {"what": "scratch", "folder": folder, "name": name or "TMPDIR is not set"}
    return _ask(told, "scratch", 2 * timeout, child)


def _ask(
    question: Mapping[str, str], key: str, timeout: float, child: Sequence[str]
) -> list[Finding]:
    # By standard input: a URL may hold a password, and everybody can read arguments.
    answer = commands.ask(child, timeout=timeout, text=json.dumps(question))
    found, step = _read(answer.out)
    if answer.timed_out:
        found.append(
            Finding(
                key=key,
                state="problem",
                seen=f"{step} can't be looked at: no answer within {timeout:g} s",
                advice="its file system or server does not answer: try another node, and tell the "
                "administrators",
            )
        )
    elif answer.code != 0:
        seen = f"{step} can't be looked at: {answer.last_words or f'exit code {answer.code}'}"
        found.append(Finding(key=key, state="problem", seen=seen))
    return found


def _read(text: str) -> tuple[list[Finding], str]:
    """The findings, and what was looked at last."""
    found, step = [], "the folder"
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            said = json.loads(line)
            if "step" in said:
                step = str(said["step"])
            else:
                found.append(Finding(**said))
    return found, step


def main() -> None:
    """The child's part."""

    def say(said: object) -> None:
        print(json.dumps(said), flush=True)

    for finding in _found(json.load(sys.stdin), say):
        say(asdict(finding))


def _found(question: Mapping[str, str], say: Callable[[object], None]) -> Iterable[Finding]:
    if question["what"] == "scratch":
        from ensq.doctor.folders import check_scratch

        say({"step": f"the folder for temporary files, {question['folder']},"})
        return [check_scratch(question["folder"], question["name"])]
    from ensq.doctor.places import check_places

    return check_places(question["url"], say=lambda step: say({"step": step}))
