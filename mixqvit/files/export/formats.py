"""The formats that a quantized model, or its bits, can be exported in, free of torch so that pages can list them."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixqvit.errors import ExportError

if TYPE_CHECKING:
    from mixqvit.network.bits import BitsPerLayer
    from mixqvit.study.study import Study

__all__ = ["FORMATS", "Exported", "Format", "exported", "find_format"]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: What users call it.
        title: What the dashboard calls it.
        description: One sentence for people.
        suffix: How the names of its files end.
    """

    name: str
    title: str
    description: str
    suffix: str = ".json"


FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        Format(
            "onnx",
            "ONNX model",
            "The quantized model with integer weights, QuantizeLinear and DequantizeLinear: onnxruntime executes it.",
            ".onnx",
        ),
        Format(
            "allocation",
            "allocation file",
            "This program's own JSON: bits of every layer with what they were solved with.",
        ),
        Format(
            "torchao",
            "torchao configuration",
            "`FqnToConfig` for `quantize_`: `config_from_dict` of torchao reads it.",
        ),
        Format(
            "modelopt",
            "ModelOpt configuration",
            "`quant_cfg` for `quantize` of NVIDIA Model Optimizer.",
        ),
        Format(
            "model-explorer",
            "Model Explorer overlays",
            "Node data for the exported ONNX model or a `.pt2` file: bits, importance Ω and sensitivity Λ.",
        ),
    )
}
"""All formats by name."""


@dataclass(frozen=True)
class Exported:
    """What came out.

    Attributes:
        files: Content by what the file's name is extended by, such as `.onnx`; several for overlays.
        notes: What the format cannot express, in sentences.
        opset: Version of ONNX's operators; None for other formats.
        stored_bits: Width that weight codes are stored at, by layer name; of an ONNX model only.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    opset: int | None = None
    stored_bits: Mapping[str, int] | None = None

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(map(len, self.files.values()))

    def one_file(self, stem: str) -> tuple[str, bytes]:
        """Return name and content of one file to send: the only one, or a zip archive of all; always the same bytes."""
        if len(self.files) == 1:
            ((ending, content),) = self.files.items()
            return f"{stem}{ending}", content
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for ending, content in self.files.items():
                file.writestr(zipfile.ZipInfo(f"{stem}{ending}"), content)
        return f"{stem}.zip", archive.getvalue()


def find_format(name: str) -> Format:
    """Return the format of this name.

    Raises:
        ExportError: There is none.
    """
    if name not in FORMATS:
        raise ExportError(f"There is no export format {name!r}; choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def exported(
    study: "Study", bits: "BitsPerLayer", name: str, importance: Mapping[str, float] | None = None
) -> Exported:
    """Export bits of a study, in memory.

    Args:
        study: The study; what it has not computed yet of what the format needs is computed.
        bits: (weight bits, activation bits) of every layer.
        name: One of `FORMATS` other than `allocation`, which says how the bits were solved for (`allocation_document`).
        importance: Ω by layer name, of which `model-explorer` makes an overlay.

    Raises:
        ExportError: The format is unknown, or cannot hold this model.
        MixQViTError: The model cannot be quantized.
    """
    from mixqvit.files.export.library_config import json_content

    suffix = find_format(name).suffix
    if name == "onnx":
        from mixqvit.files.export.onnx_model import exported_onnx

        model = exported_onnx(study.packing.quantized(bits), study.model.name, study.notes)
        return Exported({suffix: model.content}, (), model.opset, model.stored_bits)
    if name == "model-explorer":
        from mixqvit.files.export.model_explorer import overlays

        found = overlays(study.graph, bits, importance, study.sensitivity(), study.settings.metric)
        notes = () if importance is not None else ("Importance Ω is not among the overlays: it was not computed.",)
        return Exported({f".{overlay}{suffix}": json_content(part) for overlay, part in found.items()}, notes)
    if name == "torchao":
        from mixqvit.files.export.torchao_config import torchao_config

        config = torchao_config(study.graph, bits)
    elif name == "modelopt":
        from mixqvit.files.export.modelopt_config import modelopt_config

        config = modelopt_config(study.graph, bits)
    else:
        raise ExportError(f"{name} is written with what the bits were solved with: use `allocation_document`.")
    return Exported({suffix: json_content(config.document)}, config.notes)
