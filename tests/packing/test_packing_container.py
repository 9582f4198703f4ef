"""The file around a packed model: safetensors of a known size, which shows every change."""

import json
import random

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from mixqvit.errors import PackingError
from mixqvit.packing import container

METADATA = {"model": "digits_vit", "layers": "head"}
TENSORS = {
    "weights": np.arange(5, dtype=np.float32),
    "empty": np.empty(0, np.float32),
    "codes": np.arange(7, dtype=np.uint8),
}
HEADER_BYTES = container.sealed_header_bytes(METADATA, 100)
CONTENT = container.encode(TENSORS, METADATA, HEADER_BYTES)


def test_any_safetensors_reader_reads_it(tmp_path):
    (tmp_path / "packed.safetensors").write_bytes(CONTENT)
    with safe_open(tmp_path / "packed.safetensors", "np") as file:
        assert file.metadata().items() >= METADATA.items()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == TENSORS.keys()
    assert all(np.array_equal(found[name], array) for name, array in TENSORS.items())


def test_the_size_is_known_beforehand_and_data_are_aligned():
    assert len(CONTENT) == container.LENGTH_BYTES + HEADER_BYTES + 5 * 4 + 7
    assert (container.LENGTH_BYTES + HEADER_BYTES) % 64 == 0
    tensors, metadata = container.decode(CONTENT, "the file")
    assert metadata.items() >= METADATA.items()
    assert all(np.array_equal(tensors[name], array) for name, array in TENSORS.items())


def test_a_header_without_room_is_refused():
    with pytest.raises(PackingError, match="were kept for it"):
        container.encode(TENSORS, METADATA | {"details": "x" * 4000}, HEADER_BYTES)


def test_truncated_at_any_length_is_refused():
    for length in [*range(0, len(CONTENT), 13), len(CONTENT) - 1]:
        with pytest.raises(PackingError, match=r"the file is (truncated|altered)"):
            container.decode(CONTENT[:length], "the file")
    with pytest.raises(PackingError, match="the file is altered"):
        container.decode(CONTENT + b"\0", "the file")


def test_a_change_of_any_byte_is_refused():
    chosen = random.Random(0)
    for position in range(len(CONTENT)):
        altered = bytearray(CONTENT)
        altered[position] ^= chosen.randrange(1, 256)
        with pytest.raises(PackingError, match="the file"):
            container.decode(bytes(altered), "the file")


def test_filling_that_is_other_white_space_is_refused():
    """JSON readers skip it, so only the digest can tell."""
    position = container.LENGTH_BYTES + HEADER_BYTES - 1
    assert CONTENT[position : position + 1] == b" "
    with pytest.raises(PackingError, match="SHA-256 differs"):
        container.decode(CONTENT[:position] + b"\n" + CONTENT[position + 1 :], "the file")


@pytest.mark.parametrize(
    "content",
    [
        safetensors.numpy.save(TENSORS),
        safetensors.numpy.save(TENSORS, {"format": "pt"}),
        b"PK\3\4 no safetensors at all" * 50,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        b"",
    ],
)
def test_other_files_are_refused(content):
    with pytest.raises(PackingError, match="the file"):
        container.decode(content, "the file")


def test_another_version_is_refused():
    start, end = container.LENGTH_BYTES, container.LENGTH_BYTES + HEADER_BYTES
    header = json.loads(CONTENT[start:end])
    header["__metadata__"]["version"] = "2"
    with pytest.raises(PackingError, match="version 2"):
        container.decode(CONTENT[:start] + json.dumps(header).encode().ljust(HEADER_BYTES) + CONTENT[end:], "the file")


def test_what_cannot_be_read_or_written_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(PackingError, match=r"missing\.safetensors"):
        container.read(tmp_path / "missing.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PackingError, match="folder"):
        container.write(CONTENT, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
