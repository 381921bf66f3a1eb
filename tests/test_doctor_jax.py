"""``ensq doctor`` and JAX: each way in which it fails, by a module of that name that does so."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ensq.doctor import Finding, check_jax

WORKS = """
import collections
__version__ = "0.4.36"
Device = collections.namedtuple("Device", "platform device_kind")
def devices():
    return [Device("cpu", "cpu")]
"""
WITH_GPUS = WORKS.replace('[Device("cpu", "cpu")]', '2 * [Device("gpu", "NVIDIA H100")]')
FALLS_BACK = WORKS.replace(
    "    return", "    import sys; print('WARNING: no kernel image', file=sys.stderr)\n    return"
)
LISTS = "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H100 (UUID: GPU-2)'"


def look(
    folder: Path,
    module: str = WORKS,
    *,
    smi: str | None = None,
    plugin: bool = False,
    timeout: float = 1.0,
    **environment: str,
) -> Finding:
    """What is found with this module as JAX, and this shell script as nvidia-smi."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "jax.py").write_text(module)
    if plugin:
        (folder / "jax_cuda12_plugin.py").touch()
    if smi is not None:
        path = folder / "bin/nvidia-smi"
        path.write_text(f"#!/bin/sh\n{smi}\n")
        path.chmod(0o755)
    strange = ("CUDA_", "JAX_", "SLURM_", "PYTHONPATH")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(strange)}
    there = {"PYTHONPATH": str(folder), "PATH": f"{folder}/bin:/bin"}
    return check_jax({**kept, **there, **environment}, timeout)


def test_gpus_are_counted(tmp_path: Path) -> None:
    found = look(tmp_path, WITH_GPUS)
    assert (found.state, found.seen) == ("ok", "JAX sees 2 NVIDIA H100")


def test_no_gpu_is_a_note(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found.state, found.seen) == ("note", "JAX sees 1 cpu, and there is no GPU here")


def test_most_of_a_gpus_memory_stays_free(tmp_path: Path) -> None:
    """A worker may be training on it."""
    check = "import os; assert os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'"
    assert look(tmp_path, f"{check}\n{WITH_GPUS}").state == "ok"


def test_a_driver_that_hangs_at_the_end_is_no_matter(tmp_path: Path) -> None:
    late = "import atexit, time; atexit.register(time.sleep, 60)"
    begin = time.monotonic()
    assert look(tmp_path, f"{late}\n{WITH_GPUS}", timeout=5.0).state == "ok"
    assert time.monotonic() - begin < 20


IMPORT, ASK = "{}\n" + WORKS, WORKS.replace("    return", "    {}\n    return")
BROKEN = {
    "hangs on import": (IMPORT.format("import time; time.sleep(60)"), "import jax` does not end"),
    "hangs": (ASK.format("import time; time.sleep(60)"), "hangs when it looks for devices"),
    "crashes": (ASK.format("import os; os.kill(os.getpid(), 11)"), "(SIGSEGV) when it looks"),
    "crashes on import": (IMPORT.format("import os; os.kill(os.getpid(), 6)"), "(SIGABRT) on imp"),
    "no AVX": (IMPORT.format("import os; os.kill(os.getpid(), 4)"), "(SIGILL) on import"),
    "no memory": (ASK.format("import os; os.kill(os.getpid(), 9)"), "(SIGKILL) when it looks"),
    "not there": ("import jaxlib_of_nobody", "No module named 'jaxlib_of_nobody'"),
    "fails": (ASK.format("raise RuntimeError('no driver')"), "no devices: RuntimeError: no driver"),
    "exits": (IMPORT.format("raise SystemExit(3)"), "can't be imported: exit code 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_jax_that_is_broken_is_a_problem_in_words_of_its_own(case: str, tmp_path: Path) -> None:
    module, words = BROKEN[case]
    begin = time.monotonic()
    found = look(tmp_path, module, timeout=0.5)
    assert (found.state, found.key) == ("problem", "devices")
    assert words in found.seen
    assert found.advice
    assert time.monotonic() - begin < 10


def test_advice_differs_by_the_signal(tmp_path: Path) -> None:
    advice = {
        number: look(tmp_path, ASK.format(f"import os; os.kill(os.getpid(), {number})")).advice
        for number in (4, 9, 11)
    }
    assert "--mem" in advice[9]
    assert "AVX" in advice[4]
    assert "nvidia-smi" in advice[11]


def test_a_platform_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = look(tmp_path, ASK.format("raise RuntimeError('unknown')"), JAX_PLATFORMS="cuda")
    assert "JAX_PLATFORMS=cuda" in found.seen
    assert "unset JAX_PLATFORMS" in found.advice


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_are_a_warning(visible: str, tmp_path: Path) -> None:
    found = look(tmp_path, smi=LISTS, CUDA_VISIBLE_DEVICES=visible)
    assert found.state == "warning"
    assert f"CUDA_VISIBLE_DEVICES is {visible or 'empty'}" in found.seen


def test_gpus_without_a_plugin_are_a_problem_with_the_version_to_install(tmp_path: Path) -> None:
    found = look(tmp_path, smi=LISTS)
    assert found.state == "problem"
    assert "nvidia-smi lists 2 GPUs: JAX has no plugin for CUDA" in found.seen
    assert 'pip install "jax[cuda12]==0.4.36"' in found.advice


def test_a_plugin_that_does_not_work_is_a_problem_with_its_words(tmp_path: Path) -> None:
    found = look(tmp_path, FALLS_BACK, smi=LISTS, plugin=True)
    assert found.state == "problem"
    assert "jax_cuda12_plugin is installed: WARNING: no kernel image" in found.seen


def test_jax_kept_to_the_cpu_beside_gpus_is_a_warning(tmp_path: Path) -> None:
    found = look(tmp_path, smi=LISTS, JAX_PLATFORMS="cpu")
    assert (found.state, found.advice) == ("warning", "unset JAX_PLATFORMS")


def test_an_nvidia_smi_that_hangs_is_a_problem(tmp_path: Path) -> None:
    found = look(tmp_path, smi="exec sleep 60")
    assert found.state == "problem"
    assert "nvidia-smi does not answer within 1 s" in found.seen


def test_an_nvidia_smi_without_a_driver_is_a_note(tmp_path: Path) -> None:
    found = look(tmp_path, smi="echo 'could not communicate with the driver'; exit 9")
    assert found.state == "note"
    assert "could not communicate" in found.seen


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"])
def test_gpus_of_the_job_that_a_container_hides_are_a_warning(name: str, tmp_path: Path) -> None:
    found = look(tmp_path, **{name: "0,1"})
    assert found.state == "warning"
    assert "this job has GPU 0,1" in found.seen
    assert "--nv" in found.advice
