"""Test equipment: named points at which a process can be made to die, stop, wait or fail.

Nothing happens unless ENSQ_FAULTS is set to a JSON list of rules, such as
[{"point": "write.renamed", "do": "kill", "hit": 3}]. Keys of a rule:

point        name of a point, or a glob such as "write.*"
do           kill (SIGKILL to itself), stop (SIGSTOP to itself), exit, delay, error (OSError)
hit          only at this pass in this process, from 1; left out: at every pass
probability  only at this share of the passes, by the numbers of ``seed``
match        only where the point tells of something that holds this text, such as a path
seconds      of a delay
errno        name of the error, such as "ENOSPC"
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from fnmatch import fnmatchcase
from typing import Any

EXIT_FAULT = 70
_ACTIONS = ("kill", "stop", "exit", "delay", "error")
_KINDS: dict[str, tuple[type, ...]] = {
    "point": (str,),
    "do": (str,),
    "hit": (int,),
    "probability": (int, float),
    "seed": (int,),
    "match": (str,),
    "seconds": (int, float),
    "errno": (str,),
}


class _Rule:
    def __init__(self, given: Any) -> None:
        if not isinstance(given, dict):
            raise ValueError(f"{given!r} is no object")
        for key, value in given.items():
            if key not in _KINDS:
                raise ValueError(f"unknown key {key!r}; there are: {', '.join(_KINDS)}")
            if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
                raise ValueError(f"{key}: {value!r} is of the wrong type")
        if "point" not in given or given.get("do") not in _ACTIONS:
            raise ValueError(f'a rule has "point" and "do", one of {", ".join(_ACTIONS)}: {given}')
        self.pattern: str = given["point"]
        self.action: str = given["do"]
        self.hit: int | None = given.get("hit")
        self.probability: float = given.get("probability", 1.0)
        self.match: str = given.get("match", "")
        self.seconds: float = given.get("seconds", 0.0)
        number = getattr(errno, given.get("errno", "EIO"), None)
        if not isinstance(number, int):
            raise ValueError(f"errno: there is no {given['errno']!r}")
        self.errno = number
        if self.hit is not None and self.hit < 1:
            raise ValueError("hit: counts from 1")
        if not 0 <= self.probability <= 1 or not 0 <= self.seconds < float("inf"):
            raise ValueError("probability is from 0 to 1, seconds are 0 or more")
        self._random = random.Random(given.get("seed", 0))
        self._passes = 0

    def wants(self, name: str, about: str) -> bool:
        if not fnmatchcase(name, self.pattern) or self.match not in about:
            return False
        self._passes += 1
        if self.hit is not None and self._passes != self.hit:
            return False
        return self.probability >= 1 or self._random.random() < self.probability

    def act(self, name: str) -> None:
        match self.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "exit":
                os._exit(EXIT_FAULT)
            case "delay":
                time.sleep(self.seconds)
            case _:
                raise OSError(self.errno, os.strerror(self.errno), f"fault at {name}")


def _parse(text: str | None) -> list[_Rule] | None:
    if not text:
        return None
    try:
        rules = json.loads(text)
        if not isinstance(rules, list):
            raise ValueError("not a list of rules")
        return [_Rule(rule) for rule in rules]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"ENSQ_FAULTS: {error}") from error


_rules = _parse(os.environ.get("ENSQ_FAULTS"))


def point(name: str, about: str = "") -> None:
    """A place where a fault may be wanted; ``about`` says what is worked on, such as a path."""
    if _rules is None:
        return
    for rule in _rules:
        if rule.wants(name, about):
            rule.act(name)
