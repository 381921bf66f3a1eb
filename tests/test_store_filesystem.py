"""The file system decides: a write-ahead log is for local ones only, and locks must hold."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import store_tools as tools

from ensq.errors import DatabaseError
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
        "busy_timeout": 0,  # the waiting is ours: see engine.patiently
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


LOCKING = """\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
1 22 0:1 / /nfs rw,relatime - nfs4 s:/x rw,vers=4.2,proto=tcp,local_lock=none,addr=10.0.0.1
2 22 0:2 / /nfs/nolock rw,relatime - nfs s:/x rw,vers=3,nolock,local_lock=all
3 22 0:3 / /nfs/all rw,relatime - nfs4 s:/x rw,vers=4.2,local_lock=all
4 22 0:4 / /nfs/posix rw,relatime - nfs s:/x rw,vers=3,local_lock=posix
5 22 0:5 / /nfs/flock rw,relatime - nfs s:/x rw,vers=3,local_lock=flock
6 22 0:6 / /lustre rw,flock - lustre mds:/x rw,checksum,flock,user_xattr
7 22 0:7 / /lustre/local rw - lustre mds:/x rw,localflock,user_xattr
8 22 0:8 / /lustre/without rw - lustre mds:/x rw,user_xattr,noflock
9 22 0:9 / /lustre/mount-option rw,flock - lustre mds:/x rw
10 22 0:10 / /cifs rw - cifs //s/x rw,vers=3.1.1,serverino
11 22 0:11 / /cifs/nobrl rw - cifs //s/x rw,vers=3.1.1,nobrl
12 22 0:12 / /sshfs rw - fuse.sshfs me@s: rw,user_id=0
13 22 0:13 / /gcs rw - fuse.gcsfuse bucket rw
14 22 0:14 / /9p rw - 9p host rw,trans=virtio
15 22 0:15 / /beegfs rw - beegfs beegfs_nodev rw
"""


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/tmp/q.db", None),
        ("/nfs/q.db", None),
        ("/nfs/nolock/q.db", "nfs is mounted with nolock"),
        ("/nfs/all/q.db", "nfs4 is mounted with local_lock=all"),
        ("/nfs/posix/q.db", "nfs is mounted with local_lock=posix"),
        ("/nfs/flock/q.db", None),  # SQLite's locks are of the other kind
        ("/lustre/q.db", None),
        ("/lustre/local/q.db", "lustre is mounted with localflock"),
        ("/lustre/without/q.db", "lustre is mounted without flock"),
        ("/lustre/mount-option/q.db", None),
        ("/cifs/q.db", None),
        ("/cifs/nobrl/q.db", "cifs is mounted with nobrl"),
        ("/sshfs/q.db", "fuse.sshfs has no file locks"),
        ("/gcs/q.db", "fuse.gcsfuse has no file locks"),
        ("/9p/q.db", "9p has no file locks"),
        ("/beegfs/q.db", None),  # its mount table doesn't tell
    ],
)
def test_mount_that_keeps_locks_to_the_host_is_known(path: str, words: str | None) -> None:
    reason = filesystem.locking_of(Path(path), LOCKING)
    assert (reason is None) == (words is None)
    assert words is None or words in str(reason)


def test_database_is_refused_where_locks_do_not_hold_unless_it_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    tools.fresh(path).close()
    table = tmp_path / "mounts"
    table.write_text("1 1 0:1 / / rw - lustre mds:/x rw,localflock\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", table)
    for place, create in ((path, False), (tmp_path / "new.db", True)):
        with pytest.raises(DatabaseError, match="not safe here: lustre is mounted") as caught:
            Store.open(place, create=create)
        assert "export ENSQ_DB=postgresql://USER@HOST/ensq" in str(caught.value)
        assert "~/.pgpass" in str(caught.value)
        assert caught.value.exit_code == 69
    assert not (tmp_path / "new.db").exists()
    with Store.open(path, read_only=True) as store:
        assert store.ensembles() == []


def test_mount_table_of_the_kernel_is_read(tmp_path: Path) -> None:
    """A tmpfs of the test's own, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing")
    point = tmp_path / "a b"
    point.mkdir()
    script = (
        "import sys; from pathlib import Path; from ensq.store import filesystem as f\n"
        "path = Path(sys.argv[1]) / 'q.db'\n"
        "print(f.kind_of(path), f.journal_for(path), f.locking_of(path))"
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$1" && shift && exec "$@"'),
            *("sh", str(point), sys.executable, "-c", script, str(point)),
        ],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode and "ermi" in done.stderr:  # "Operation not permitted", "Permission denied"
        pytest.skip("namespaces can't be made here")
    assert done.stdout == "tmpfs wal None\n", done.stderr
