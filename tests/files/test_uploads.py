"""Uploads: kept in a place of bounded size, for a while."""

import io
import os
import time
from pathlib import Path

import pytest

from mixqvit.errors import AccessError
from mixqvit.files import uploads
from mixqvit.files.access import allowed_path
from mixqvit.files.uploads import keep_upload, remove_old_uploads, uploads_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_an_upload_is_kept_and_may_be_named():
    path = keep_upload("photos.zip", io.BytesIO(b"content"))
    assert path.read_bytes() == b"content"
    assert path.name == "photos.zip"
    assert allowed_path(str(path)) == path.resolve()
    assert keep_upload("photos.zip", io.BytesIO(b"content")) == path
    assert keep_upload("photos.zip", io.BytesIO(b"other")) != path


@pytest.mark.parametrize(
    "name",
    ["../../evil.zip", "..\\..\\evil.zip", "/etc/evil.zip", "a\0b evil.zip", ".evil.zip", "x" * 500 + "evil.zip"],
)
def test_names_mean_nothing_to_the_file_system(cache: Path, name: str):
    path = keep_upload(name, io.BytesIO(b"content"))
    assert path.parent.parent == uploads_folder()
    assert path.name.endswith("evil.zip")
    assert [file for file in cache.rglob("*") if file.is_file()] == [path]


def test_a_nameless_upload_is_kept():
    assert keep_upload("..", io.BytesIO(b"content")).name == "upload"


def test_too_large_an_upload_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "LIMIT_BYTES", 10)
    with pytest.raises(AccessError, match="is larger than"):
        keep_upload("large.zip", io.BytesIO(b"x" * 11))
    assert list(uploads_folder().iterdir()) == []


def test_what_was_sent_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "LIMIT_BYTES", 25)
    first, second = (keep_upload("a", io.BytesIO(letter * 10)) for letter in (b"a", b"b"))
    os.utime(first.parent, (time.time() - 20,) * 2)
    os.utime(second.parent, (time.time() - 10,) * 2)
    third = keep_upload("a", io.BytesIO(b"c" * 10))
    assert [path.exists() for path in (first, second, third)] == [False, True, True]


def test_an_old_upload_is_removed():
    old, young = (keep_upload("a", io.BytesIO(letter)) for letter in (b"a", b"b"))
    os.utime(old.parent, (time.time() - uploads.KEPT_SECONDS - 60,) * 2)
    remove_old_uploads()
    assert (old.exists(), young.exists()) == (False, True)


def test_two_uploads_in_the_same_moment_do_not_meet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "monotonic_ns", lambda: 1)

    class Slow(io.BytesIO):
        """While it is read, another session sends its file."""

        def read(self, size: int | None = -1) -> bytes:
            found.setdefault("other", keep_upload("other.zip", io.BytesIO(b"other")))
            return super().read(size)

    found: dict[str, Path] = {}
    assert keep_upload("mine.zip", Slow(b"mine")).read_bytes() == b"mine"
    assert found["other"].read_bytes() == b"other"
