"""What a hostile archive tries: each is refused, nothing is written outside, and nothing half-unpacked stays."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile

import pytest

from voxtral_finetune.data import archives
from voxtral_finetune.errors import DataError


def zipped(path, entries, mode=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode or stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tarred(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "../secret"
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(path, said, root):
    before = set(root.iterdir())
    with pytest.raises(DataError, match=said):
        archives.unpacked(path, root / "into")
    left = [file for file in (root / "into").rglob("*") if not file.name.endswith(".lock")]
    assert not left
    assert set(root.iterdir()) - before <= {root / "into"}


NAMES = ["../evil", "a/../../evil", "/etc/evil", "C:\\evil", "a\\..\\evil", "a.wav:stream", "..", "\\\\host\\x"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_are_refused(tmp_path, name):
    refused(zipped(tmp_path / "a.zip", [("good", "x"), (name, "x")]), "leads elsewhere", tmp_path)
    members = [("good", b"x", tarfile.REGTYPE), (name, b"x", tarfile.REGTYPE)]
    refused(tarred(tmp_path / "a.tar.gz", *members), "leads elsewhere", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    refused(tarred(tmp_path / "a.tar.gz", ("good", b"x", tarfile.REGTYPE), ("bad", b"", kind)), "link or", tmp_path)
    refused(zipped(tmp_path / "a.zip", [("bad", "/etc/passwd")], stat.S_IFLNK | 0o777), "link or", tmp_path)


def test_bombs_are_refused(tmp_path):
    zeros = bytes(30_000_000)
    refused(zipped(tmp_path / "a.zip", [("good", "x"), ("zeros", zeros)]), "more than 100 times", tmp_path)
    refused(tarred(tmp_path / "a.tar.gz", ("zeros", zeros, tarfile.REGTYPE)), "more than 100 times", tmp_path)


def test_a_size_that_lies_does_not_hide_a_bomb(tmp_path):
    path = zipped(tmp_path / "a.zip", [("zeros", bytes(30_000_000))])
    content = path.read_bytes().replace(struct.pack("<I", 30_000_000), struct.pack("<I", 10))
    path.write_bytes(content)
    refused(path, "cannot be unpacked|more than 100 times", tmp_path)


def test_a_tar_header_that_asks_for_all_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("long name follows")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 2**30
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)))
    refused(tmp_path / "a.tar.gz", "more than 100 times", tmp_path)


def test_too_many_files_names_twice_damage_and_encryption_are_refused(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(tmp_path / "twice.zip", [("a", "x"), ("a", "y")])
    refused(tmp_path / "twice.zip", "twice", tmp_path)
    path = zipped(tmp_path / "a.zip", [(f"{number}", "x") for number in range(20)])
    content = bytearray(path.read_bytes())
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content[:-60])
    refused(damaged, "cannot be unpacked", tmp_path)
    locked = bytearray(zipped(tmp_path / "b.zip", [("a", "x")]).read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(locked)
    refused(tmp_path / "b.zip", "encrypted", tmp_path)
    monkeypatch.setattr(archives, "MAX_FILES", 10)
    refused(path, "over 10 files", tmp_path)
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 100)
    refused(path, "over 10 files", tmp_path)


def test_an_archive_is_unpacked_once_and_again_when_it_changes(tmp_path):
    path = zipped(tmp_path / "a.zip", [("x/a.txt", "one"), ("x/", ""), ("__MACOSX/b", "junk")])
    folder = archives.unpacked(path, tmp_path / "into")
    assert [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()] == ["x/a.txt"]
    (folder / "mark").touch()
    assert (archives.unpacked(path, tmp_path / "into") / "mark").exists()
    zipped(path, [("x/a.txt", "two two")])
    assert (archives.unpacked(path, tmp_path / "into") / "x/a.txt").read_text() == "two two"
