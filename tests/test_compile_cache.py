"""The shared cache of compiled programs: many writers, torn entries, garbage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensq.train.cache import SealedCache

ROOT = Path(__file__).resolve().parents[1]
# Compiles one program by way of the cache in a folder, and prints what it gives, to the last bit.
PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from ensq.train import cache, environment
if "plain" in sys.argv:
    cache.install = lambda: False
environment.use_compile_cache(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
def f(x):
    for n in range(12):
        x = jnp.tanh(x @ x.T / 7.0) + n
    return x
compiled = []
jax.monitoring.register_event_listener(
    lambda name, **more: compiled.append(name) if "cache_misses" in name else None)
print(f"{jax.jit(f)(jnp.eye(8) * 0.37).sum().item().hex()} {len(compiled)}")
"""


def start(folder: Path, *how: str) -> subprocess.Popen[str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), *how],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> tuple[str, int, str]:
    """The number that came out, how often it compiled, and what it said."""
    out, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    value, compiled = out.split()
    return value, int(compiled), said


def entries(folder: Path, suffix: str = ".program") -> list[Path]:
    return sorted(folder.rglob(f"*{suffix}"))


def test_many_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    together = [result(process) for process in [start(tmp_path) for _ in range(4)]]
    again, compiled, said = result(start(tmp_path))
    assert {value for value, *_ in together} == {again}
    assert (compiled, "damaged" in said) == (0, False)
    assert not any("warning" in said.lower() for *_, said in together)
    assert entries(tmp_path) and not entries(tmp_path, ".tmp")


@pytest.mark.parametrize("damage", ["torn", "garbage", "empty", "one bit"])
def test_a_damaged_entry_is_compiled_again_and_replaced(tmp_path: Path, damage: str) -> None:
    before, _, _ = result(start(tmp_path))
    for path in entries(tmp_path):
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        new = {"torn": data[:-100], "garbage": b"\0" * 500, "empty": b"", "one bit": bytes(flipped)}
        path.write_bytes(new[damage])
    value, compiled, said = result(start(tmp_path))
    assert value == before
    assert compiled > 0
    assert "damaged; it is compiled again" in said
    value, compiled, said = result(start(tmp_path))
    assert (value, compiled, "damaged" in said) == (before, 0, False)


def test_jaxs_own_cache_never_gets_rid_of_a_torn_entry(tmp_path: Path) -> None:
    """The negative control of the test above."""
    before, _, _ = result(start(tmp_path, "plain"))
    for path in entries(tmp_path, "-cache"):
        path.write_bytes(path.read_bytes()[:-100])
    for _ in range(2):
        value, compiled, said = result(start(tmp_path, "plain"))
        assert value == before
        assert compiled > 0 and "Error reading persistent compilation cache entry" in said


def test_a_folder_that_can_not_be_written_costs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = SealedCache(str(tmp_path / "c"))
    (tmp_path / "c").rmdir()
    (tmp_path / "c").write_text("in the way")
    cache.put("key", b"value")
    assert cache.get("key") is None
    assert "was not kept" in capsys.readouterr().err


def test_what_is_put_is_got_and_the_first_entry_stays(tmp_path: Path) -> None:
    cache = SealedCache(str(tmp_path))
    assert cache.get("key") is None
    cache.put("key", b"value")
    cache.put("key", b"another")
    assert cache.get("key") == b"value"
