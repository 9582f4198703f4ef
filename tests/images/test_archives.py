import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from mixqvit.errors import ImageError
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.listing import MAX_FILE_BYTES
from mixqvit.images.loading import load_image_sets
from mixqvit.images.sources import archives, zips
from tests.images.archive_files import KINDS, write_archive, write_tar, write_zip
from tests.images.files import ANIMALS, class_files, class_folders, numbers, png, tiny_model, tree


def loaded(path: Path, classes: object = ANIMALS) -> ImageSets:
    """The images of an archive; nothing may have been written beside it."""
    before = tree(path.parent)
    try:
        return load_image_sets(path, tiny_model(classes))
    finally:
        assert tree(path.parent) == before


def skipped(path: Path) -> dict[str, str]:
    return dict(loaded(path).sample.skipped)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "photos/", "./", "a/b/"])
def test_an_archive_is_as_good_as_its_folder(tmp_path: Path, kind: str, prefix: str) -> None:
    folder = class_folders(tmp_path / "folder")
    (tmp_path / "archive").mkdir()
    files = {f"{prefix}{name}": content for name, content in reversed(class_files().items())}
    files |= {f"{prefix}notes.txt": b"no image", "__MACOSX/ant/._00.png": b"no image", f"{prefix}ant/.DS_Store": b""}
    sets = loaded(write_archive(tmp_path / "archive", files, kind))
    expected = load_image_sets(folder, tiny_model(ANIMALS))
    assert sets.calibration.fingerprint == expected.calibration.fingerprint
    assert sets.evaluation.fingerprint == expected.evaluation.fingerprint
    assert sets.sample.skipped == ()
    assert sets.sample.found == 33


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "photos/"])
def test_a_flat_archive_has_no_labels(tmp_path: Path, kind: str, prefix: str) -> None:
    sets = loaded(write_archive(tmp_path, {f"{prefix}{number:02d}.png": png(number) for number in range(30)}, kind))
    assert sets.evaluation.labels is None
    assert numbers(sets.calibration.pixels) == [0, 10, 20]
    assert sorted(numbers(sets.evaluation.pixels)) == [number for number in range(30) if number % 10]


def test_splits_in_an_archive(tmp_path: Path) -> None:
    files = {f"data/train/{name}": content for name, content in class_files().items()}
    files |= {f"data/val/{name}/0.png": png(900 + number) for number, name in enumerate(ANIMALS)}
    sets = loaded(write_archive(tmp_path, files, "tar.gz"))
    assert numbers(sets.evaluation.pixels) == [900, 901, 902]
    assert len(sets.calibration) == 32


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = write_archive(tmp_path, class_files(), "zip").rename(tmp_path / "upload.tar")
    assert loaded(path).sample.found == 33


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.png", "leads out"),
        ("ant/../../evil.png", "leads out"),
        ("..\\evil.png", "leads out"),
        ("/etc/evil.png", "absolute"),
        ("C:\\evil.png", "absolute"),
        ("c:evil.png", "absolute"),
        ("\\\\server\\share\\evil.png", "absolute"),
        ("ant/e\nvil.png", "control"),
        ("ant/\x1b[2Jevil.png", "control"),
        ("ant//evil.png", "no plain path"),
        ("a/" * 70 + "evil.png", "too long"),
        ("x" * 1100 + ".png", "too long"),
        ("ant/inner.zip", "archive inside"),
        ("ant/inner.tar.gz", "archive inside"),
    ],
)
def test_tricky_names_are_not_read(tmp_path: Path, kind: str, name: str, reason: str) -> None:
    found = skipped(write_archive(tmp_path, {**class_files(), name: png(999)}, kind))
    assert len(found) == 1
    [(shown, why)] = found.items()
    assert reason in why
    assert shown.isprintable()
    assert len(shown) <= 120


def test_a_name_with_nul_is_not_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path, {**class_files(), "ant/evilX.png": png(999)}, "zip")
    path.write_bytes(path.read_bytes().replace(b"evilX.png", b"evil\0.png"))
    assert skipped(path) == {"ant/evil\\x00.png": "its name holds control characters"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_two_members_of_one_name_the_first_is_used(tmp_path: Path, kind: str) -> None:
    path = write_archive(tmp_path, class_files(), kind)
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("ant/01.png", png(999))
    else:
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("ant/01.png")
            member.size = len(png(999))
            archive.addfile(member, io.BytesIO(png(999)))
    sets = loaded(path)
    assert dict(sets.sample.skipped) == {"ant/01.png": "its name occurs twice; the first one is used"}
    assert 999 not in numbers(sets.evaluation.pixels)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_and_devices_in_a_tar_are_not_read(tmp_path: Path, kind: bytes, mode: str) -> None:
    path = tmp_path / "images.tar"
    with tarfile.open(path, mode) as archive:
        for name, content in class_files().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("ant/passwd.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert skipped(path) == {"ant/passwd.png": "it is a link or a device, not a file"}


def test_links_in_a_zip_are_not_read(tmp_path: Path) -> None:
    path = write_archive(tmp_path, class_files(), "zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("ant/passwd.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert skipped(path) == {"ant/passwd.png": "it is a link or a device, not a file"}


def patched(path: Path, name: str, offset: int, value: bytes, local_offset: int | None = None) -> Path:
    """A zip with some bytes of a member's entry in the directory changed, and of its local header."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + offset : entry + offset + len(value)] = value
    if local_offset is not None:
        header = data.index(name.encode()) - 30
        data[header + local_offset : header + local_offset + len(value)] = value
    path.write_bytes(data)
    return path


def test_encrypted_members_are_not_read(tmp_path: Path) -> None:
    path = patched(write_archive(tmp_path, class_files(), "zip"), "ant/01.png", 8, b"\x01\x00", 6)
    assert skipped(path) == {"ant/01.png": "it is encrypted"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_not_read(tmp_path: Path, method: int) -> None:
    path = write_archive(tmp_path, class_files(), "zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ant/z.png", png(999), method)
    assert "ordinary zip compression" in skipped(path)["ant/z.png"]


@pytest.mark.parametrize("size", [50, 70, 500_000, 2**31])
def test_a_zip_that_lies_about_a_size_is_found_out(tmp_path: Path, size: int) -> None:
    path = write_zip(tmp_path / "images.zip", class_files(), zipfile.ZIP_STORED)
    patched(path, "ant/01.png", 24, struct.pack("<L", size), 22)
    assert list(skipped(path)) == ["ant/01.png"]


def test_a_zip_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", {**class_files(), "ant/zeros.png": bytes(40 * 2**20)})
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageError, match=r"bomb\.zip expands to more than 200 times its size"):
        loaded(path)


def test_many_small_bombs_are_one(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", {f"ant/{number}.png": bytes(2**20) for number in range(20)})
    with pytest.raises(ImageError, match="expands to more than 200 times"):
        loaded(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """The trick of zip files that expand to petabytes without nesting."""
    path = write_archive(tmp_path, class_files(), "zip")
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("ant/00.png").header_offset
    patched(path, "ant/01.png", 42, struct.pack("<L", first + 5))
    with pytest.raises(ImageError, match="overlap"):
        loaded(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_bomb_is_refused_while_it_expands(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "bomb.tar", {"ant/zeros.png": bytes(24 * 2**20)}, mode)
    assert path.stat().st_size < 100_000
    with pytest.raises(ImageError, match="expands to more than 200 times"):
        loaded(path)


def test_a_tar_header_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.XHDTYPE, 4 * 2**30
    path = tmp_path / "images.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ImageError, match=r"header of 42949\d+ bytes"):
        loaded(path)


def test_a_chain_of_tar_headers_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8
    path = tmp_path / "images.tar.gz"
    path.write_bytes(gzip.compress((header.tobuf(tarfile.GNU_FORMAT) + b"ant/0\0".ljust(512, b"\0")) * 5000))
    with pytest.raises(ImageError, match="damaged or none"):
        loaded(path)


def test_sparse_members_are_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("ant/sparse.png")
    member.type = tarfile.GNUTYPE_SPARSE
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(member)
        for name, content in class_files().items():
            plain = tarfile.TarInfo(name)
            plain.size = len(content)
            archive.addfile(plain, io.BytesIO(content))
    assert list(skipped(path)) == ["ant/sparse.png"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_members_are_counted(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 32)
    monkeypatch.setattr(zips, "MAX_MEMBERS", 32)
    with pytest.raises(ImageError, match="more than 32 members"):
        loaded(write_archive(tmp_path, class_files(), kind))


def test_a_directory_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(ImageError, match=r"directory of the archive .* takes"):
        loaded(write_archive(tmp_path, class_files(), "zip"))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.bz2"])
def test_a_large_member_is_not_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FILE_BYTES == 64 * 2**20
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 2**20)
    noise = torch.randint(0, 256, (3 * 2**19,), dtype=torch.uint8).numpy().tobytes()
    found = skipped(write_archive(tmp_path, {**class_files(), "ant/large.png": noise, "ant/empty.png": b""}, kind))
    assert found == {"ant/large.png": "it is larger than 1 MiB", "ant/empty.png": "it is empty"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive_is_an_error_or_said(tmp_path: Path, kind: str) -> None:
    path = write_archive(tmp_path, class_files(), kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if kind == "tar":  # what is before the end can be read
        sets = loaded(path)
        assert 0 < sets.sample.found < 33
    else:
        with pytest.raises(ImageError, match="damaged"):
            loaded(path)


def test_a_tar_that_is_damaged_in_the_middle_says_so(tmp_path: Path) -> None:
    path = write_archive(tmp_path, class_files(), "tar")
    data = bytearray(path.read_bytes())
    start = data.index(b"bee/05.png")
    data[start : start + 512] = b"\xff" * 512
    path.write_bytes(data)
    sets = loaded(path)
    assert sets.sample.found == 16
    assert "damaged after 16 members" in " ".join(sets.sample.notes)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18), bytes(2000)])
@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_no_archive_at_all(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"images.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"damaged|holds no images|unknown kind"):
        loaded(path)


def test_an_archive_of_refused_members_names_them(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"holds no images; \.\./a\.png: its name leads out of the archive"):
        loaded(write_archive(tmp_path, {"../a.png": png(1), "../b.png": png(2)}, "zip"))


def test_a_zip_with_a_comment_and_with_zip64_records(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"holidays"
        for name, content in class_files().items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(content)
    assert loaded(path).sample.found == 33


def test_a_zip_whose_directory_has_zip64_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    path = write_archive(tmp_path, class_files(), "zip")
    assert b"PK\x06\x06" in path.read_bytes()
    monkeypatch.undo()
    assert loaded(path).sample.found == 33
    data = bytearray(path.read_bytes())
    record = data.index(b"PK\x06\x06")
    data[record + 40 : record + 48] = struct.pack("<Q", 2**60)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="larger than the file"):
        loaded(path)


def test_several_compressed_streams_are_one_archive(tmp_path: Path) -> None:
    import bz2
    import lzma

    content = write_archive(tmp_path, class_files(), "tar").read_bytes()
    half = len(content) // 2
    for name, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        path = tmp_path / f"two.tar.{name}"
        path.write_bytes(compress(content[:half]) + compress(content[half:]))
        assert loaded(path).sample.found == 33


def test_xz_that_wants_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixqvit.images.sources import tars

    monkeypatch.setattr(tars, "XZ_MEMORY_BYTES", 2**20)
    with pytest.raises(ImageError, match="damaged or none"):
        loaded(write_archive(tmp_path, class_files(), "tar.xz"))


def test_a_header_that_never_ends_is_refused(tmp_path: Path) -> None:
    """An old GNU sparse file: every block of 512 bytes says that another one follows."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[156], header[482] = ord("S"), 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = b"00000000001\0" * 42 + b"\1" + b"\0" * 7
    (tmp_path / "sparse.tar").write_bytes(bytes(header) + block * 4096)
    with pytest.raises(ImageError, match=r"has a header of \d+ bytes"):
        load_image_sets(tmp_path / "sparse.tar", tiny_model(ANIMALS))
