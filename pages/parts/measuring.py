"""What measuring means on the images of the open study, and how long it takes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mixqvit.quantization.channels import CLIPS
from mixqvit.tasks.evaluation import Accuracy
from pages.parts import common

if TYPE_CHECKING:
    from mixqvit.study.study import Study

SECONDS_WITHOUT_ASKING = 20

QUALITY_PASSES = 120
"""Full-precision passes per image of Captum's scores of an attribution, next to which others are quick (DeiT-Tiny)."""


def has_labels(study: "Study") -> bool:
    return study.evaluation_images.labels is not None


def key(study: "Study") -> str:
    """Return what tells studies apart for which measurements differ: one model may be open on several images."""
    return f"{study.identity} {study.evaluation_images.fingerprint} {study.settings}"


def accuracy(study: "Study") -> Accuracy:
    """Return what stands for accuracy on the evaluation images."""
    return study.task.accuracy(has_labels(study))


def among_classes(study: "Study") -> None:
    """Say so where accuracy looks at some of the classes only."""
    if study.task.scope_words:
        st.caption(study.task.scope_words)


def show_notes(place: DeltaGenerator, study: "Study") -> None:
    """Show what to know beside the accuracy: warnings at once, the rest behind a button."""
    with place.container():
        others = common.warned(study.notes)
        if others:
            with st.popover(f"Notes on model and images: {len(others)}", icon=":material/info:", type="tertiary"):
                common.bullets(others)


def evaluation_seconds(study: "Study") -> float:
    """Return about how long measuring one setting takes; timed once per session and study."""
    name = f"seconds of an evaluation on {key(study)}"
    if name not in st.session_state:
        st.session_state[name] = study.evaluations.estimate()
    return st.session_state[name]


def image_seconds(study: "Study") -> float:
    """Return about how long one image takes in full precision."""
    from mixqvit.study.evaluation import COMPENSATION_PASSES, QUANTIZED_PASS

    calibrated = min(study.settings.calibration_images, len(study.calibration_images))
    passes = QUANTIZED_PASS * len(study.evaluation_images) + COMPENSATION_PASSES * calibrated
    return evaluation_seconds(study) / passes


def scoring_seconds(study: "Study", strategy: str) -> float:
    """Return about how long it takes to score the layers for a strategy; timed once per session and study."""
    name = f"seconds of scores for {strategy} on {key(study)}"
    if name not in st.session_state:
        st.session_state[name] = study.scores.estimate(strategy)
    return st.session_state[name]


def strategies_seconds(study: "Study", strategies: Sequence[str]) -> float:
    """Return about how long it takes to score, solve and measure strategies."""
    return sum(evaluation_seconds(study) + scoring_seconds(study, name) for name in strategies)


def methods_seconds(study: "Study") -> float:
    """Return about how long all kinds of importance take, with the allocations they lead to."""
    from mixqvit.relevance.methods import METHODS
    from mixqvit.study.estimate import RELEVANCE_PASSES

    analysed = min(study.settings.analysis_images, len(study.calibration_images))
    passes = sum(
        RELEVANCE_PASSES.get(name, 0) * min(analysed, method.images or analysed) for name, method in METHODS.items()
    )
    passes += QUALITY_PASSES * min(analysed, 8) * sum(method.explains_pixels for method in METHODS.values())
    return passes * image_seconds(study) + 2 * (len(METHODS) + 1) * evaluation_seconds(study)


def clip_seconds(study: "Study") -> float:
    """Return about how long the network's harm takes against clipping."""
    return len(CLIPS) * min(study.settings.calibration_images, len(study.calibration_images)) * image_seconds(study)
