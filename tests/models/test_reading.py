"""Files that are no checkpoints, or hostile ones: one clear sentence each, nothing executed, nothing allocated."""

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from mixqvit.errors import ModelError
from mixqvit.models.cards import ASSETS
from mixqvit.models.loading import load_model


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(ASSETS / "digits_vit.safetensors")


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model("digits_vit", path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError):
        load_model(None, path)


def zipped(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.safetensors", b"", "is empty"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
        ("a.safetensors", b"\n <!DOCTYPE html><html>Not found</html>", "is a web page"),
        ("a.bin", b"<html>", "is a web page"),
        ("a.safetensors", b"\xff" * 400, "damaged or no safetensors file"),
        ("a.safetensors", (10**6).to_bytes(8, "little") + b'{"a"', "it was cut off"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}", "no plain state dict"),
        ("a.pth", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a.pth", b"weights", "neither safetensors nor"),
        ("a.pth", b"\x80", "cannot be read as plain weights"),
        ("a.pt", b"PK\x03\x04" + bytes(100), "cannot be read as plain weights"),
    ],
)
def test_files_of_other_kinds(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    refused(tmp_path / file, message)


def test_pictures_and_archives_under_the_name_of_a_checkpoint(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.pth", "JPEG")
    refused(tmp_path / "cat.pth", "it is a JPEG picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.safetensors", "PNG")
    refused(tmp_path / "cat.safetensors", "a PNG picture")
    photographs = {f"holiday/{number}.jpg": b"\xff\xd8\xff" for number in range(5)}
    refused(zipped(tmp_path / "photographs.pth", photographs), r"archive of other files \(holiday/0.jpg, ")
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refused(tmp_path / "old.pth", "it is a tar archive")


def test_torch_file_under_the_name_of_a_safetensors_file(tmp_path, state):
    torch.save(state, tmp_path / "own.safetensors")
    refused(tmp_path / "own.safetensors", "rename it to .pth")


def test_folders(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "is a folder; give the file")
    config = tmp_path / "folder.pth" / "config.json"
    config.write_text("{}")
    refused(tmp_path / "folder.pth", "is a folder; .* does not describe a model of timm: .* give the file of weights")
    config.write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    refused(
        tmp_path / "folder.pth", r"Hugging Face transformers \(ViTForImageClassification\), whose layout is not read"
    )
    config.write_text('{"architecture": "test_vit", "num_classes": 3}')
    torch.save({}, tmp_path / "folder.pth" / "model.pth")
    refused(tmp_path / "folder.pth", "is a folder; use local-dir:.* as the model")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("a.npz", r"NumPy archive, .*\.load_pretrained"),
        ("a.onnx", "ONNX graph"),
        ("a.pt2", "torch.export"),
        ("a.msgpack", "as Flax writes weights"),
    ],
)
def test_files_of_other_programs_are_named_with_what_helps(tmp_path, file, message):
    zipped(tmp_path / file, {"embedding/kernel.npy": b""})
    refused(tmp_path / file, message)


@pytest.mark.parametrize("file", ["own.pyth", "own.th", "own.pkl", "own.tar", "own", "0123abcd"])
def test_content_and_not_the_suffix_says_what_a_file_is(tmp_path, state, file):
    torch.save(state, tmp_path / file)
    assert load_model("digits_vit", tmp_path / file).fingerprint == load_model("digits_vit").fingerprint
    (tmp_path / file).write_bytes(b"notes of a person")
    refused(tmp_path / file, "holds no weights: it is neither safetensors nor a file that torch.save wrote")


@pytest.mark.parametrize("file", ["whole.pth", "whole.safetensors", "old.pth"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_truncated(tmp_path, state, file, share):
    path = tmp_path / file
    if path.suffix == ".pth":
        torch.save(state, path, _use_new_zipfile_serialization=file != "old.pth")
    else:
        safetensors.torch.save_file(state, path)
    os.truncate(path, int(path.stat().st_size * share))
    refused(path, "damaged|cut off|cannot be read as plain weights")


def test_compressed_archive_is_refused_before_it_expands(tmp_path):
    bomb = zipped(tmp_path / "bomb.pth", {"a/data.pkl": b"", "a/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    refused(bomb, "expands to 50000000 bytes")


def test_entries_that_share_their_bytes_are_refused(tmp_path, state):
    """All entries of the list name the same bytes, so that together they are larger than the file."""
    path = zipped(tmp_path / "shared.pth", {"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(100_000), "a/data/1": b""})
    content = bytearray(path.read_bytes())
    first, second = (content.rindex(name) - 46 for name in (b"a/data/0", b"a/data/1"))
    for start, end in ((16, 28), (42, 46)):  # checksum and sizes, offset of the entry
        content[second + start : second + end] = content[first + start : first + end]
    path.write_bytes(content)
    refused(path, "expands to 200004 bytes")


def test_programs_and_models_are_no_weights(tmp_path):
    zipped(tmp_path / "script.pt", {"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b"", "a/code/x.py": b""})
    refused(tmp_path / "script.pt", "TorchScript")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused(tmp_path / "module.pth", r"no tensors \(torch.nn.modules.linear.Linear\)")


class Runs:
    """Unpickling this would run a command."""

    def __init__(self, *command: object) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return self.command[0], self.command[1:]


@pytest.mark.parametrize("zip_format", [True, False])
def test_code_is_neither_run_nor_allocated_for(tmp_path, state, zip_format):
    proof = tmp_path / "proof"
    for number, trap in enumerate((Runs(os.system, f"touch {proof}"), Runs(bytearray, 10**13), Runs(eval, "1 / 0"))):
        path = tmp_path / f"trap{number}.pth"
        torch.save({**state, "extra": trap}, path, _use_new_zipfile_serialization=zip_format)
        refused(path, "holds objects that are no tensors")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Runs(os.system, f"touch {proof}"), protocol=4))
    refused(tmp_path / "raw.pth", "cannot be read as plain weights")
    assert not proof.exists()


def test_tensors_larger_than_their_bytes_are_refused(tmp_path, state):
    torch.save({**state, "head.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "wide.pth")
    refused(tmp_path / "wide.pth", r"claims a shape of \(1000000, 1000000\) for head.weight")
    torch.save({**state, "head.weight": torch.zeros(10, 96).to_sparse()}, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", "no tensors|in a form that is not read")
    torch.save({**state, "head.weight": torch.empty(10, 96, device="meta")}, tmp_path / "meta.pth")
    refused(tmp_path / "meta.pth", "no tensors|in a form that is not read")


def test_too_many_views_of_the_same_bytes_are_refused(tmp_path):
    shared = torch.zeros(100_000)
    torch.save({f"view {number}": shared[number:] for number in range(50)}, tmp_path / "views.pth")
    refused(tmp_path / "views.pth", "more bytes than the file has")


def test_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.touch()
    os.truncate(path, 17 * 2**30)  # sparse, takes no space
    refused(path, "17 GiB, more than the 16 GiB")
    path.unlink()


def test_nothing_but_names_of_tensors_is_a_state_dict(tmp_path, state):
    for number, content in enumerate(([1, 2], {}, {"a": 1}, {"model": {"a": 1}}, torch.zeros(3))):
        torch.save(content, tmp_path / f"{number}.pth")
        refused(tmp_path / f"{number}.pth", "no plain state dict")
    torch.save({1: torch.zeros(3)}, tmp_path / "numbers.pth")
    refused(tmp_path / "numbers.pth", "names are no text")
