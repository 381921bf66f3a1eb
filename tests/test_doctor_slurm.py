"""``ensq doctor`` and SLURM: answers of a real cluster, and commands that hang, lie or fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ensq.doctor.slurm import check_slurm, parse_partitions, parse_settings

ANSWERS = Path(__file__).parent / "slurm_answers"


def test_settings_of_a_real_cluster_are_read() -> None:
    settings = parse_settings((ANSWERS / "config.txt").read_text())
    assert settings["KillWait"] == "3 sec"
    assert settings["MaxArraySize"] == "1001"


def test_partitions_of_a_real_cluster_are_read() -> None:
    partitions = parse_partitions((ANSWERS / "partition.txt").read_text())
    modes = {part["PartitionName"]: part["PreemptMode"] for part in partitions}
    assert modes == {"main": "OFF", "low": "REQUEUE", "lowc": "CANCEL"}


def stub(folder: Path, script: str) -> None:
    path = folder / "scontrol"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", ["exec /bin/sleep 60", "echo nonsense", "exit 1"])
def test_a_scontrol_that_hangs_lies_or_fails_is_a_warning(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    begin = time.monotonic()
    states = {finding.key: finding.state for finding in check_slurm(25.0, timeout=0.5)}
    assert states["settings"] == "warning"
    assert time.monotonic() - begin < 10


def test_a_short_kill_wait_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, "echo 'KillWait = 3 sec'")
    monkeypatch.setenv("PATH", str(tmp_path))
    states = {finding.key: finding.state for finding in check_slurm(25.0)}
    assert states["kill_wait"] == "warning"


def test_no_slurm_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [finding.state for finding in check_slurm(25.0)] == ["note"]
