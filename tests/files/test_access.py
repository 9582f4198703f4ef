"""Which paths a browser may name."""

from pathlib import Path

import pytest

from mixqvit.cache import default_folder
from mixqvit.errors import AccessError
from mixqvit.files.access import ROOTS_VARIABLE, allowed_path, data_roots


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only allowed folder, beside one that is not."""
    root = tmp_path / "allowed"
    (root / "photos").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    monkeypatch.setenv(ROOTS_VARIABLE, str(root))
    return root


def test_the_working_folder_and_the_cache_are_allowed_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ROOTS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert data_roots() == (tmp_path.resolve(), default_folder().resolve())


def test_paths_inside_are_returned_resolved(root: Path):
    assert allowed_path("photos") == root / "photos"
    assert allowed_path(f" {root}/photos/../photos ") == root / "photos"
    (root / "link").symlink_to(root / "photos")
    assert allowed_path("link") == root / "photos"


def test_several_roots_are_separated_as_in_path(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ROOTS_VARIABLE, f"{root}:{root.parent / 'secret'}")
    assert allowed_path(str(root.parent / "secret" / "key")).read_text() == "key"


@pytest.mark.parametrize("text", ["../secret/key", "photos/../../secret", "/etc/passwd", "~/x", "../secret/missing"])
def test_paths_outside_are_refused_without_a_look(root: Path, text: str):
    with pytest.raises(AccessError, match=f"outside of the folders .*{ROOTS_VARIABLE}"):
        allowed_path(text)


def test_a_link_out_is_refused(root: Path):
    (root / "photos" / "out").symlink_to(root.parent / "secret")
    with pytest.raises(AccessError, match="outside"):
        allowed_path("photos/out/key")


def test_a_neighbour_whose_name_begins_alike_is_outside(root: Path):
    (root.parent / "allowed2").mkdir()
    with pytest.raises(AccessError, match="outside"):
        allowed_path("../allowed2")


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "x" * 5000])
def test_texts_that_are_no_paths(root: Path, text: str):
    with pytest.raises(AccessError):
        allowed_path(text)


def test_a_missing_path_inside_is_named(root: Path):
    with pytest.raises(AccessError, match="There is no nothing"):
        allowed_path("nothing")
