"""The journal follows from the file system: a write-ahead log is for local ones only."""

from __future__ import annotations

from pathlib import Path

import pytest
import store_tools as tools

from ensq.store import Store, filesystem
from ensq.store import engine as engine_module


def test_local_database_has_a_write_ahead_log_and_full_flushes(tmp_path: Path) -> None:
    expected = filesystem.journal_for(tmp_path.resolve())
    with Store.open(tmp_path / "q.db", create=True) as store, store._database.write() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {
        "journal_mode": expected,
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


MOUNTS = """\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:50 / /home rw shared:5 - nfs4 server:/home rw
41 40 0:51 / /home/me/local\\040disk rw - xfs /dev/sdb rw
42 22 0:52 / /scratch rw - lustre mds:/scratch rw
43 22 0:53 / /over rw - ext4 /dev/sdc rw
44 43 0:54 / /over rw - cifs //server/over rw
a broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tmp", "ext4"),
        ("/home/me", "nfs4"),
        ("/homely", "ext4"),
        ("/home/me/local disk/q", "xfs"),
        ("/scratch/a/b", "lustre"),
        ("/over/x", "cifs"),
    ],
)
def test_file_system_is_that_of_the_longest_mount_point(path: str, kind: str) -> None:
    assert filesystem.kind_of(Path(path), MOUNTS) == kind


def test_network_and_unknown_file_systems_get_a_rollback_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTS", tmp_path / "nothing")
    assert filesystem.journal_for(tmp_path) == "delete"
    for kind in ("nfs", "nfs4", "cifs", "lustre", "beegfs", "fuse.sshfs", "gpfs", "9p"):
        assert kind not in filesystem.LOCAL


def test_database_moved_to_a_network_file_system_loses_its_write_ahead_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    tools.fresh(path).close()
    monkeypatch.setattr(engine_module, "journal_for", lambda path: "delete")
    with Store.open(path) as store, store._database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "delete"
