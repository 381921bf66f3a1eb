"""(a) An ensemble from a cold start, through ``ensq run`` and through EnsembleOfModels."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.pairs import FUNCTIONS, end_sides
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, python
from ensq.worker.devices import gpus_to_use

KINDS = ("own", "same")
GPU_AIM, AIM_PER_CORE = 15.0, {2: 5.0, 3: 5.0}  # 8 on 4 cores and more
MORE_CORES = 8.0
STOPPING = 60.0  # seconds that a stopped run may take to save its members


def rows(run: Run) -> Iterator[Row]:
    """A row for each kind of energy function; one ``ensq run`` of a round is in both."""
    told: dict[str, list[Any]] = {"ensq": [], **{function: [] for function in KINDS}}
    failure: Exception | None = None
    end_sides(run)
    for number in range(run.rounds(2, 1)):
        if number and run.left() < sum(found[-1]["seconds"] for found in told.values()):
            run.say(f"  {number} rounds: the time for this row is over")
            break
        order = list(told) if number % 2 == 0 else list(told)[::-1]
        try:
            for side in order:
                if side == "ensq":
                    told[side].append(by_ensq(run))
                else:
                    told[side].append(by_chemtrain(run, side))
        except Exception as error:  # what was measured before is kept
            failure = error
            break
    for function in KINDS:
        if told["ensq"] and told[function]:
            yield _row(run, function, told)
    if failure is not None:
        raise failure


def _row(run: Run, function: str, told: dict[str, list[Any]]) -> Row:
    theirs = told[function]
    guessed = any(one["members_trained"] < run.members for one in theirs)
    last = theirs[-1]
    return pair(
        [
            (own["seconds"], other["seconds"])
            for own, other in zip(told["ensq"], theirs, strict=False)
        ],
        aim=_aim(last["kind"]) if function == "own" and not run.short else None,
        row="a",
        only="ensemble",
        what=f"{'~ ' if guessed else ''}ensemble of {run.members} / {FUNCTIONS[function]}",
        names=("ensq run", f"EnsembleOfModels, {FUNCTIONS[function]}"),
        device=last["device"],
        detail={
            "members": run.members,
            "extrapolated": guessed,  # from the members that there was time for
            "ensq": told["ensq"],
            "chemtrain": theirs,
        },
    )


def _aim(kind: str) -> Aim:
    if kind == "gpu":
        return Aim(GPU_AIM, unit=" x")
    return Aim(AIM_PER_CORE.get(len(os.sched_getaffinity(0)), MORE_CORES), unit=" x")


def by_ensq(run: Run) -> dict[str, Any]:
    """``ensq run``, from no database and no compiled program to the exported model."""
    place = run.place("ensq-run")
    command = [python(), "-m", "ensq.cli", "run", str(run.config), "--name", "bench"]
    command += ["--n-models", str(run.members)]
    for one in [*run.sets, "ensemble.save_all_models=false"]:  # what the other side gives, or more
        command += ["--set", one]
    if gpus_to_use():
        command += ["--pack", _pack(run)]
    began, used = time.perf_counter(), _processor_time()
    with (place / "log").open("wb") as log:
        worked = _finish(
            subprocess.Popen(
                command,
                cwd=place,
                env=run.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ),
            run,
        )
    seconds = time.perf_counter() - began
    text = (place / "log").read_text(errors="replace")
    if worked:
        raise RuntimeError(f"ensq run ended with {worked}: {' '.join(text.split()[-40:])}")
    [path] = place.glob("runs/*/exported_models/ensemble_metadata.json")
    metadata = json.loads(path.read_text())
    if metadata["n_models"] != run.members:
        raise RuntimeError(f"ensq trained {metadata['n_models']} members of {run.members}")
    trained = [line for line in text.splitlines() if line.startswith("trained in")]
    return {
        "seconds": seconds,
        "cpu_seconds": _processor_time() - used,
        "said": trained,
        "validation_losses": metadata["validation_losses"],
        "command": command[1:],
    }


def by_chemtrain(run: Run, function: str) -> dict[str, Any]:
    """A script that trains the ensemble by chemtrain.

    It trains one member after another, each compiled anew. Where the time is over before it is
    done, what the members so far took is extended to all.
    """
    place = run.place(f"ensemble-{function}")
    spec = {
        "config": str(run.config),
        "sets": list(run.sets),
        "members": run.members,
        "function": function,
        "folder": str(place),
    }
    # the other kind of function has its turn, too
    limit = time.monotonic() + run.left() * (0.5 if function == "own" else 0.95)
    began, used, wall = time.perf_counter(), _processor_time(), time.time()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [python(), "-m", "benchmarks.ensemble_script", json.dumps(spec)],
            env=run.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        lines, ended = _lines(process, limit)
    seconds = time.perf_counter() - began
    members = [line for line in lines if "member" in line]
    if ended and (process.returncode or len(members) < run.members):
        last = (place / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"chemtrain's ensemble ended with {process.returncode}: {last}")
    if not members:
        raise RuntimeError("chemtrain's ensemble trained no member in the time of this row")
    if not ended:
        later = sorted(line["seconds"] for line in members[1:]) or [members[0]["seconds"]]
        seconds = members[0]["wall"] - wall + later[len(later) // 2] * (run.members - 1)
    return {
        "seconds": seconds,
        "cpu_seconds": _processor_time() - used,  # of the members that it trained
        "members_trained": len(members),
        "seconds_per_member": [line["seconds"] for line in members],
        "validation_losses": [line["loss"] for line in members],
        "device": lines[0]["device"],
        "kind": lines[0]["kind"],
    }


def _processor_time() -> float:
    """Seconds that processes which have ended, and theirs, have used so far."""
    told = resource.getrusage(resource.RUSAGE_CHILDREN)
    return told.ru_utime + told.ru_stime


def _lines(process: subprocess.Popen[bytes], limit: float) -> tuple[list[dict[str, Any]], bool]:
    """What it said, and whether it ended by itself; else it is ended at ``limit``."""
    assert process.stdout is not None
    data = b""
    try:
        while True:
            left = limit - time.monotonic()
            wait = None if left == float("inf") else max(0.0, left)
            if not select.select([process.stdout], [], [], wait)[0]:
                break
            more = os.read(process.stdout.fileno(), 65536)
            if not more:
                process.wait()
                break
            data += more
        ended = process.poll() is not None
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
    return [json.loads(line) for line in data.split(b"\n")[:-1]], ended


def _finish(process: subprocess.Popen[bytes], run: Run) -> int:
    """Its exit code; at the end of the row's time it is stopped, and its workers with it."""
    try:
        return process.wait(None if run.left() == float("inf") else max(0.0, run.left()))
    except subprocess.TimeoutExpired:
        raise RuntimeError("ensq run took longer than there was time for this row") from None
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOPPING)
            except subprocess.TimeoutExpired:
                process.kill()
            process.wait()


def _pack(run: Run) -> str:
    """As ensq chooses by itself where it can; else all members together."""
    told = subprocess.run(
        [python(), "-m", "ensq.cli", "run", "--help"],
        env=run.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return "auto" if re.search(r"--pack[^-]*auto", told) else str(run.members)
