"""Files of weights, read as data only: what they are is looked at before anything is unpickled or allocated.

`torch.load(weights_only=True)` runs nothing in a file either, but allocates what the file asks for (1.5 GB for one of a
kilobyte that calls `bytearray`), unpacks compressed entries and builds lists without end: hence the look with `zipfile`
and `pickletools` before it, which also names the class that is refused.
"""

import argparse
import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from mixqvit.errors import ModelError
from mixqvit.models.layouts import SUFFIXES, file_kind
from mixqvit.models.local_folder import folder_remedy

__all__ = ["check_file", "first_line", "read_file"]

LARGEST_FILE = 16 * 2**30
MOST_ENTRIES = 100_000
LARGEST_PICKLE = 16 * 2**20
MOST_OPCODES = 4_000_000

_LEGACY_PICKLES = 5  # magic number, protocol, system, the object itself, names of the storages
_GLOBALS = {
    "collections": {"OrderedDict", "Counter"},
    "torch": {"Size", "device"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "argparse": {"Namespace"},  # timm's and DeiT's training scripts save their arguments
    "_codecs": {"encode"},
    "builtins": {"set", "complex"},
    "__builtin__": {"set", "complex"},
}
_UNCHECKED = ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4")  # name what they load by values that only a run would know
_PICTURES = {b"\xff\xd8\xff": "a JPEG picture", b"\x89PNG": "a PNG picture", b"GIF8": "a GIF picture"}
_OTHERS = {
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"7z\xbc\xaf": "a 7z file",
}


def read_file(path: Path) -> Any:
    """Read what a file of weights holds, without executing anything in it.

    Tensors may be views of the file; nothing says yet that they are sound.

    Raises:
        ModelError: The file is missing, too large, damaged, or no file of weights.
    """
    kind = check_file(path)
    try:
        if kind == "safetensors":
            return safetensors.torch.load_file(path)
        # every time: timm allows it while it loads pretrained weights of its own, and then takes it from the list
        torch.serialization.add_safe_globals([argparse.Namespace])
        return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except SafetensorError as error:
        raise ModelError(
            f"the checkpoint {path} is damaged or no safetensors file ({first_line(error)}); download it again"
        ) from error
    except Exception as error:  # torch.load raises whatever its zip and pickle readers meet
        reason = first_line(error)
        if reason.startswith("Weights only load failed"):  # torch goes on to advise what is never done here
            reason = "its list of tensors is damaged, or holds more than tensors"
        raise ModelError(
            f"the checkpoint {path} cannot be read as plain weights ({reason}); "
            "download it again, or save its state dict as safetensors"
        ) from error


def check_file(path: Path) -> str:
    """Return what kind of weights a file holds, by its content: `safetensors`, `zip` or `pickle` (both of torch).

    Raises:
        ModelError: It is missing, too large, or none of them, or it holds objects that are no tensors.
    """
    if path.is_dir():
        raise ModelError(f"the checkpoint {path} is a folder; {folder_remedy(path)}")
    if not path.is_file():
        raise ModelError(f"the checkpoint {path} does not exist; give the path of a {', '.join(SUFFIXES[:5])} file")
    known = file_kind(path)
    if known is not None:
        raise ModelError(f"the checkpoint {path} is {known}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
            if size > LARGEST_FILE:
                raise ModelError(
                    f"the checkpoint {path} has {size / 2**30:.0f} GiB, more than the {LARGEST_FILE // 2**30} GiB that "
                    "are read; save the state dict alone, without the optimizer"
                )
            return _kind(path, file, head, size)
    except OSError as error:
        raise ModelError(f"the checkpoint {path} cannot be read ({error.strerror or error}); check the file") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _kind(path: Path, file: IO[bytes], head: bytes, size: int) -> str:
    if not head:
        raise ModelError(f"the checkpoint {path} is empty; download it again")
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        raise ModelError(
            f"the checkpoint {path} is a git-lfs pointer, not the weights themselves; fetch them with `git lfs pull`"
        )
    if head.lstrip()[:256].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelError(
            f"the checkpoint {path} is a web page, not weights; download the file itself (the raw or resolve address)"
        )
    if head.startswith(b"PK\x03\x04") and path.suffix == ".safetensors":
        raise ModelError(
            f"the checkpoint {path} is a damaged or no safetensors file but a zip archive; if torch.save wrote it, "
            "rename it to .pth"
        )
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, file, size)
        return "zip"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= size - 8:
        return "safetensors"
    if path.suffix == ".safetensors":
        raise ModelError(
            f"the checkpoint {path} is damaged or no safetensors file ({_looks_like(head, size)}); download it again"
        )
    if head[:1] == b"\x80":
        file.seek(0)
        try:
            for _ in range(_LEGACY_PICKLES):
                _check_pickle(path, file)
        except _Ended:
            pass  # nothing past this place is a pickle; torch.load says whether that is damage
        return "pickle"
    raise ModelError(f"the checkpoint {path} holds no weights: it is {_looks_like(head, size)}; choose another file")


def _looks_like(head: bytes, size: int) -> str:
    for start, words in {**_PICTURES, **_OTHERS}.items():
        if head.startswith(start):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head[8:9] == b"{":
        return f"its header names {int.from_bytes(head[:8], 'little')} bytes, but the file has {size}: it was cut off"
    return "neither safetensors nor a file that torch.save wrote"


def _check_zip(path: Path, file: IO[bytes], size: int) -> None:
    """Refuse everything but what torch.save writes: stored entries that together are no larger than the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(entries) > MOST_ENTRIES:
                raise ModelError(f"the checkpoint {path} is a zip archive of {len(entries)} entries; that is no model")
            pickles = [entry for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
            if not pickles:
                shown = ", ".join(names[:3]) or "nothing"
                raise ModelError(
                    f"the checkpoint {path} is a zip archive of other files ({shown[:200]}), not of weights; if the "
                    "checkpoint is inside it, unpack it first"
                )
            if any(name.split("/")[1:2] in (["constants.pkl"], ["code"]) for name in names):
                raise ModelError(
                    f"the checkpoint {path} is a TorchScript program, not plain weights; save its state_dict()"
                )
            if len(pickles) > 1 or len(set(names)) < len(names):
                raise ModelError(f"the checkpoint {path} is damaged: entries of its archive occur twice")
            expanded = sum(entry.file_size for entry in entries)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or expanded > size:
                raise ModelError(
                    f"the checkpoint {path} is a zip archive that expands to {expanded} bytes from {size}; torch.save "
                    "stores weights without compression, so it is refused"
                )
            if pickles[0].file_size > LARGEST_PICKLE:
                raise ModelError(
                    f"the checkpoint {path} holds {pickles[0].file_size} bytes beside its weights; save the state dict"
                )
            _check_pickle(path, io.BytesIO(archive.read(pickles[0])))
    except ModelError:
        raise
    except _Ended as error:
        raise ModelError(f"the checkpoint {path} is damaged: its list of tensors is cut off") from error
    except Exception as error:  # zipfile raises what it meets in damaged archives, not only BadZipFile
        raise ModelError(
            f"the checkpoint {path} cannot be read as plain weights, it is damaged or was cut off "
            f"({first_line(error)}); download it again"
        ) from error


class _Ended(Exception):
    """No complete pickle follows."""


def _check_pickle(path: Path, file: IO[bytes]) -> None:
    """Walk over one pickle's opcodes without executing them: it may name nothing but what plain weights need."""
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number > MOST_OPCODES:
                raise ModelError(
                    f"the checkpoint {path} holds too many objects beside its weights; save the state dict"
                )
            if opcode.name in _UNCHECKED:
                raise ModelError(
                    f"the checkpoint {path} cannot be read as plain weights: it was pickled with another protocol than "
                    "torch.save uses; save the model's state_dict() with torch.save"
                )
            if opcode.name in ("GLOBAL", "INST") and not _is_plain(*argument.split(" ", 1)):
                raise ModelError(
                    f"the checkpoint {path} cannot be read as plain weights: it holds objects that are no tensors "
                    f"({argument.replace(' ', '.')[:100]}), and unpickling those can run code; save the model's "
                    "state_dict() alone"
                )
    except ModelError:
        raise
    except Exception as error:  # genops stops at raw data and at damaged opcodes with errors of many kinds
        raise _Ended from error


def _is_plain(module: str, name: str) -> bool:
    if name in _GLOBALS.get(module, ()):
        return True
    is_torch = module in ("torch", "torch.storage")
    return is_torch and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype))
