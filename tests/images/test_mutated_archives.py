import random
import struct
from pathlib import Path

import pytest

from mixqvit.errors import ImageError
from mixqvit.images.image_sets import ImageSets
from mixqvit.images.loading import load_image_sets
from tests.images.archive_files import KINDS, write_archive
from tests.images.files import ANIMALS, class_files, tiny_model, tree

MUTATIONS = 120


def truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 4, 40))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def splice(data: bytearray, chance: random.Random) -> bytearray:
    start, end, to = sorted(chance.randrange(len(data)) for _ in range(3))
    return data[:to] + data[start:end] + data[to:]


def cut_out(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randrange(1, 600) :]


def lie(data: bytearray, chance: random.Random) -> bytearray:
    """Puts an absurd number into a header, where there are some; into any place in compressed data."""
    marks = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"ustar"]
    places = [place for mark in marks for place in _all(data, mark)] or list(range(len(data)))
    place = max(0, chance.choice(places) + chance.randrange(-257, 60))
    value = chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 65535))
    data[place : place + 4] = struct.pack("<L", value)
    return data


def rename(data: bytearray, chance: random.Random) -> bytearray:
    """Renames members to paths that lead elsewhere, of the same length."""
    for _ in range(chance.choice((1, 5))):
        name = f"{chance.choice(ANIMALS)}/{chance.randrange(11):02d}.png".encode()
        trick = chance.choice(
            (b"../../e.pn", b"/etc/e.png", b"C:\\x/e.png", b"\0\0\0/00.png", b"ant/ant/an", b"../../.png")
        )
        data = data.replace(name, trick)
    return data


def zero(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(data))
    length = min(chance.randrange(1, 2000), len(data) - start)
    data[start : start + length] = bytes(length)
    return data


def _all(data: bytearray, mark: bytes) -> list[int]:
    return [place for place in range(len(data)) if data.startswith(mark, place)]


WAYS = (truncate, flip, splice, cut_out, lie, rename, zero)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {kind: write_archive(folder, class_files(), kind).read_bytes() for kind in KINDS}


@pytest.mark.parametrize("seed", range(MUTATIONS))
def test_a_damaged_archive_is_an_error_in_words_or_readable(
    tmp_path: Path, originals: dict[str, bytes], seed: int
) -> None:
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    data = bytearray(originals[kind])
    for way in chance.choices(WAYS, k=chance.choice((1, 1, 2, 3))):
        data = way(data, chance) or bytearray(b"\0")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"images.{kind}"
    path.write_bytes(data)
    before = tree(tmp_path)
    try:
        sets = load_image_sets(path, tiny_model(ANIMALS))
    except ImageError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 1500
    else:
        assert isinstance(sets, ImageSets)
        assert all(name.isprintable() for name in (*sets.calibration.names, *sets.evaluation.names))
        assert not set(sets.calibration.names) & set(sets.evaluation.names)
    assert tree(tmp_path) == before
