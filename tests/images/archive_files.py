"""Archives that the tests of image sources are made of."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

MODES = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
KINDS = ("zip", *MODES)


def write_zip(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_archive(folder: Path, files: Mapping[str, bytes], kind: str) -> Path:
    """Write `images.KIND`."""
    path = folder / f"images.{kind}"
    return write_zip(path, files) if kind == "zip" else write_tar(path, files, MODES[kind])
