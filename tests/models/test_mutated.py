"""A hundred mutated checkpoints: a model or one sentence, never another exception, nothing run, nothing written."""

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mixqvit.errors import ModelError
from mixqvit.models.cards import ASSETS
from mixqvit.models.loading import load_model
from mixqvit.models.model import Model

COUNT = 100
FILES = ("weights.safetensors", "weights.pth", "legacy.pth")


class Touches:
    """Unpickling this would write a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.proof}",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same weights in three formats, the bytes that a mutation starts from."""
    folder = tmp_path_factory.mktemp("sound")
    state = {
        key: value.half() for key, value in safetensors.torch.load_file(ASSETS / "digits_swin.safetensors").items()
    }
    safetensors.torch.save_file(state, folder / FILES[0])
    torch.save({"model": state, "epoch": 1}, folder / FILES[1])
    torch.save(state, folder / FILES[2], _use_new_zipfile_serialization=False)
    return {name: (folder / name).read_bytes() for name in FILES}


def truncated(content: bytes, dice: random.Random, proof: Path) -> bytes:
    return content[: dice.randrange(len(content))]


def flipped(content: bytes, dice: random.Random, proof: Path) -> bytes:
    """Flip bytes mostly where the structure is: at both ends."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 5, 50))):
        spread = dice.choice((64, 4096, len(content)))
        position = dice.randrange(min(spread, len(content)))
        changed[position if dice.random() < 0.5 else -position - 1] = dice.randrange(256)
    return bytes(changed)


def spliced(content: bytes, dice: random.Random, proof: Path) -> bytes:
    first, second, third = sorted(dice.randrange(len(content)) for _ in range(3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def with_other_length(content: bytes, dice: random.Random, proof: Path) -> bytes:
    length = dice.choice((0, 1, 2**63, 2**64 - 1, len(content), dice.randrange(len(content))))
    return length.to_bytes(8, "little") + content[8:]


def with_other_shapes(content: bytes, dice: random.Random, proof: Path) -> bytes:
    """Replace digits in the first kilobytes, where safetensors has shapes and offsets, with others."""
    changed = bytearray(content)
    digits = [position for position in range(8, 5000) if chr(content[position]).isdigit()]
    for position in dice.sample(digits, min(len(digits), 3)):
        changed[position] = ord(dice.choice("0123456789-"))
    return bytes(changed)


def with_code(content: bytes, dice: random.Random, proof: Path) -> bytes:
    """Put an opcode that calls os.system somewhere into the pickle, or make the pickle nothing else."""
    trap = pickle.dumps(Touches(proof), protocol=dice.choice((0, 2, 4)))
    position = dice.choice((0, 2, dice.randrange(2000)))
    return content[:position] + trap[2:-1] + content[position:] if dice.random() < 0.7 else trap + content


def rezipped(content: bytes, dice: random.Random, proof: Path, folder: Path) -> bytes:
    """Rename, drop, repeat, compress or replace entries of the archive."""
    (folder / "old.zip").write_bytes(content)
    compression = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(folder / "old.zip") as old, zipfile.ZipFile(folder / "new.zip", "w", compression) as new:
        for entry in old.namelist():
            written, fate = old.read(entry), dice.random()
            if entry.endswith("data.pkl") and dice.random() < 0.4:
                written = pickle.dumps(Touches(proof), protocol=2) if fate < 0.5 else flipped(written, dice, proof)
            elif fate < 0.05:
                continue
            elif fate < 0.1:
                entry = dice.choice(("../../escaped", "/tmp/escaped", entry + "x", entry.upper()))
            elif fate < 0.15:
                written = written[: len(written) // 2]
            new.writestr(entry, written)
    result = (folder / "new.zip").read_bytes()
    for name in ("old.zip", "new.zip"):
        (folder / name).unlink()
    return result


MUTATIONS = (
    truncated,
    flipped,
    spliced,
    with_other_length,
    with_other_shapes,
    with_code,
)


@pytest.mark.filterwarnings("ignore")
def test_mutated_checkpoints_are_refused_or_good(sound, tmp_path, monkeypatch):
    dice = random.Random(2024)
    proof, scratch, working = tmp_path / "proof", tmp_path / "scratch", tmp_path / "working"
    scratch.mkdir()
    working.mkdir()
    monkeypatch.chdir(working)
    outcomes = {"refused": 0, "good": 0}
    for number in range(COUNT):
        name = dice.choice(FILES)
        if name == "weights.pth" and dice.random() < 0.5:
            content = rezipped(sound[name], dice, proof, scratch)
        else:
            content = dice.choice(MUTATIONS)(sound[name], dice, proof)
        folder = working / str(number)
        folder.mkdir()
        path = folder / name
        path.write_bytes(content)
        try:
            model = load_model(dice.choice(("digits_swin", "digits_swin", None)), path)
        except ModelError as error:
            outcomes["refused"] += 1
            assert len(str(error)) < 2000
        else:
            outcomes["good"] += 1
            assert isinstance(model, Model)
            assert all(parameter.isfinite().all() for parameter in model.module.parameters())
        assert [file.name for file in folder.iterdir()] == [name], "nothing is written beside a checkpoint"
        assert not proof.exists(), "nothing in a checkpoint is run"
        path.unlink()
        folder.rmdir()
    assert list(working.iterdir()) == []
    assert outcomes["refused"] > 60
