"""The form that describes a study: which model, which images, how they are prepared and drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from mixqvit.errors import ImageError, ModelError
from mixqvit.files.access import ROOTS_VARIABLE, allowed_path, data_roots
from mixqvit.files.uploads import keep_upload
from mixqvit.images.labels import LABEL_ORDERS
from mixqvit.images.sources.digits import Digits
from mixqvit.images.sources.factory import details, forms, is_path, uploads
from mixqvit.images.sources.huggingface import HubDataset
from mixqvit.models.cards import EMBEDDED
from mixqvit.models.catalogue import CATALOGUE
from mixqvit.models.layouts import SUFFIXES
from mixqvit.models.preprocessing import CROP_MODES, INTERPOLATIONS
from mixqvit.models.sources.checkpoint_file import CheckpointFile
from mixqvit.models.sources.factory import find_source
from mixqvit.models.sources.factory import forms as model_forms
from mixqvit.models.sources.local_folder import LocalFolder
from mixqvit.study.library import StudyDescription
from mixqvit.views.numbers import megabytes, millions, percent

MODEL_SOURCES = {"timm": "From timm", "file": "A checkpoint", "embedded": "Embedded"}
IMAGE_SOURCES = {"path": "On this machine", "upload": "Upload", "hub": "Hugging Face", "digits": "Digits"}
AS_MODEL = "as the model says"
FEATURES_ONLY = "no classifier: needs a checkpoint of your own"


Source = str | UploadedFile
"""Where something is from: what was typed, or an uploaded file."""


@dataclass(frozen=True)
class Filled:
    """What the form is filled with; nothing is looked at before `description`.

    Attributes:
        model: Name of the model; empty to guess it.
        checkpoint: Path, or an uploaded file; None for none.
        images: Path or source, or an uploaded file.
        preprocessing: What differs from the model's own, as texts and numbers.
        settings: What differs from the default settings.
    """

    model: str
    checkpoint: Source | None
    images: Source | None
    preprocessing: Mapping[str, Any]
    settings: Mapping[str, Any]

    def description(self) -> StudyDescription:
        """Return the description, with every path checked and every upload kept.

        Raises:
            MixQViTError: Something is missing, or a path may not be read.
        """
        model, checkpoint = self.model.strip() or None, _path(self.checkpoint)
        if checkpoint and allowed_path(checkpoint).is_dir():
            if model:
                raise ModelError(
                    "A folder in timm's format says its architecture itself: leave the architecture empty."
                )
            model, checkpoint = f"{LocalFolder.prefix}{checkpoint}", None
        if model is None and checkpoint is None:
            raise ModelError("Choose a model, or give a checkpoint.")
        source = find_source(model, checkpoint).located(allowed_path)
        images = self.images
        if images is None or images == "":
            raise ImageError("Say which images to use: a folder, a file or a data set.")
        if not isinstance(images, str) or is_path(images):
            images = _path(images)
        return StudyDescription(source.model, source.checkpoint, images, _numbers(self.preprocessing), self.settings)


def _path(source: Source | None) -> str | None:
    """Return the checked path of what was named or uploaded."""
    if source is None or source == "":
        return None
    if isinstance(source, str):
        return str(allowed_path(source))
    source.seek(0)
    return str(keep_upload(source.name, source))


def _numbers(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in preprocessing.items():
        if name not in ("mean", "std"):
            found[name] = value
            continue
        try:
            found[name] = tuple(float(part) for part in value.replace(";", ",").split(","))
        except ValueError as error:
            raise ImageError(
                f"The {name} is written as numbers with commas, e.g. 0.5, 0.5, 0.5; not {value!r}."
            ) from error
    return found


def form() -> Filled:
    """Show the form; returns what it is filled with."""
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Model", anchor=False)
        model, checkpoint = _model()
    with right:
        st.subheader("Images", anchor=False)
        images = _images()
    with st.expander("Preprocessing and sampling", icon=":material/tune:"):
        preprocessing = _preprocessing()
        settings = _sampling()
    return Filled(model, checkpoint, images, preprocessing, settings)


def _choice(label: str, titles: dict[str, str], key: str) -> str:
    return st.segmented_control(
        label, list(titles), default=next(iter(titles)), required=True, key=key, format_func=titles.__getitem__
    )


def _model() -> tuple[str, Source | None]:
    source = _choice("Where the model comes from", MODEL_SOURCES, "model source")
    if source == "embedded":
        return st.selectbox("Embedded model", EMBEDDED, key="embedded model"), None
    if source == "timm":
        name = st.selectbox(
            "Model of timm",
            [entry.name for entry in CATALOGUE],
            key="timm model",
            accept_new_options=True,
            format_func=_timm_title,
            help="These were tested. Any other vision transformer works if its operations are known: type its name. "
            f"Names are: {model_forms()}.",
        )
        st.caption(_timm_words(name))
        return name or "", None
    path = st.text_input(
        "Checkpoint on this machine",
        key="checkpoint path",
        placeholder="deit_tiny.safetensors",
        help=f"{CheckpointFile.file_words.capitalize()}, or a folder that timm or the hub wrote (config.json beside "
        f"the weights). {_roots()}",
    )
    uploaded = st.file_uploader("or upload it", SUFFIXES, key="checkpoint upload")
    name = st.text_input(
        "Architecture",
        key="architecture",
        placeholder="as the file says, or guessed from the shapes",
        help=f"timm's name, such as deit_tiny_patch16_224. {CheckpointFile.architecture_words}",
    )
    return name, uploaded or path


def _timm_title(name: str) -> str:
    entry = next((entry for entry in CATALOGUE if entry.name == name), None)
    if entry is None:
        return name
    published = f" · {percent(entry.published_top1)}" if entry.published_top1 else ""
    return f"{entry.name} · {entry.family} · {millions(entry.parameters, 1)}{published}"


def _timm_words(name: str | None) -> str:
    entry = next((entry for entry in CATALOGUE if entry.name == name), None)
    if entry is None:
        return "Not among the tested ones."
    classes = f"{entry.classes:,} classes" if entry.classes else FEATURES_ONLY
    published = f", published top-1 {percent(entry.published_top1, 2)}" if entry.published_top1 else ""
    size = f"{millions(entry.parameters, 1)} parameters, {megabytes(4 * entry.parameters)} to download"
    return f"{entry.family}, {size}, {entry.input_size[1]} pixels, {classes}{published}."


def _images() -> Source | None:
    source = _choice("Where the images come from", IMAGE_SOURCES, "image source")
    if source == "digits":
        st.caption(Digits.details)
        return Digits.kind
    if source == "path":
        return st.text_input(
            "Folder or file on this machine",
            key="images path",
            placeholder="photos",
            help=f"What can be named: {forms()}. {details()} {_roots()}",
        )
    if source == "upload":
        return st.file_uploader(
            "Archive of images",
            uploads(),
            key="images upload",
            help="Read in place, never unpacked, and kept for a day. One folder per class inside, or no folders: "
            "then there are no labels.",
        )
    name = st.text_input("Name of the data set", key="data set", placeholder="owner/name").strip()
    split = st.text_input("Split", key="data set split", placeholder="validation or test where there is one").strip()
    return name and HubDataset.written(name, split)


def _roots() -> str:
    folders = ", ".join(f"`{root}`" for root in data_roots())
    return f"It must lie below {folders}; `{ROOTS_VARIABLE}` allows others."


def _preprocessing() -> dict[str, Any]:
    st.caption("The model's own preprocessing is used for what is left as it is.")
    with st.grid(5, min_column_width=150):
        values = {
            "mean": st.text_input("Mean", key="mean", placeholder=AS_MODEL, help="One number per channel, 0 to 1."),
            "std": st.text_input("Standard deviation", key="std", placeholder=AS_MODEL),
            "interpolation": st.selectbox(
                "Interpolation", INTERPOLATIONS, index=None, key="interpolation", placeholder=AS_MODEL
            ),
            "crop_mode": st.selectbox("Crop", CROP_MODES, index=None, key="crop mode", placeholder=AS_MODEL),
            "crop_pct": st.number_input(
                "Kept part of the side", 0.01, 1.0, None, key="crop part", placeholder=AS_MODEL, format="%.3f"
            ),
        }
    return {name: value for name, value in values.items() if value not in (None, "")}


def _sampling() -> dict[str, Any]:
    with st.grid(4, min_column_width=190):
        values = {
            "evaluation_images": st.number_input(
                "Evaluation images",
                1,
                100_000,
                None,
                key="evaluation images",
                placeholder="all, at most 1,000",
                help="A sample, the same number of every class as far as possible.",
            ),
            "sampling_seed": st.number_input(
                "Seed of the sample", 0, 10**6, 0, key="sampling seed", help="Another seed draws other images."
            ),
            "label_order": st.selectbox(
                "Order of labels",
                LABEL_ORDERS,
                index=None,
                key="label order",
                placeholder="refused where not certain",
                help="What labels such as numbers mean that name no classes of the model:\n\n"
                + "\n".join(f"- **{name}**: {words}" for name, words in LABEL_ORDERS.items()),
            ),
        }
        within = st.checkbox(
            "Only the classes that occur",
            key="within classes",
            help="Top-1 among the classes of these images, such as ten of ImageNet's thousand. Off: among all classes.",
        )
    found = {name: value for name, value in values.items() if value not in (None, 0)}
    return found | ({"within_classes": True} if within else {})
