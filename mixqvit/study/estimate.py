"""How long the stages of a study will take here: a pass of the network is timed, and a stage is so many passes.

Constants are measured, on one thread of a 2-core machine, on digits_vit, digits_swin and DeiT-Tiny at 224 pixels, as
multiples of a pass of one image that is timed in the same run. Against measured times calibration, sensitivity and an
allocation were off by a factor of at most 1.26; relevance (1.64 on digits_swin) and full precision (0.48 on DeiT-Tiny)
were corrected afterwards and not timed again. Nothing was measured on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mixqvit.network.bits import FULL_PRECISION
from mixqvit.quantization.recipes import find_recipe
from mixqvit.study.base import StudyBase
from mixqvit.study.evaluation import COMPENSATION_LAYER_SECONDS, COMPENSATION_PASSES, QUANTIZED_PASS, Evaluations
from mixqvit.study.relevance import Relevances
from mixqvit.study.sensitivity import Sensitivities

__all__ = ["Estimate", "estimate", "in_words"]

RELEVANCE_PASSES: Mapping[str, float] = {
    "chefer": 11,
    "attnlrp": 11,
    "gradient x relevance": 20,
    "gradient x activation": 5,
    "conductance": 190,
    "integrated gradients": 900,
}
"""Passes that an image takes, by method; chefer 14.4 (digits_vit), 8.5 (digits_swin) and 13.8 (DeiT-Tiny).

The multiples for relevance in tests/benchmarks/RESULTS.md are of an image that runs alone; these are of one among four.
"""

CELL_PASSES = 0.55
"""Passes that an image takes in a cell of the sweep: the network runs from the swept layer on (0.54, 0.55, 0.55)."""

CELL_SECONDS, EVALUATION_SECONDS = 0.007, 0.15
"""Time of a cell and of an evaluation beside their passes: weights fitted, results saved."""

_MANY = 32


@dataclass(frozen=True)
class Estimate:
    """What is left to compute of a study; loading model and images is not counted.

    Attributes:
        seconds: By stage: `relevance`, `calibration`, `sensitivity`, `full precision` (of the evaluation images) and
            `allocation` (one of them measured). What is saved is not counted.
        images: Images that each stage runs.
    """

    seconds: Mapping[str, float]
    images: Mapping[str, int]

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        """In words: `about 3 minutes on this machine`."""
        return in_words(self.total)


def estimate(study: StudyBase) -> Estimate | None:
    """Return how long what is left of a study takes, from a run of a few images that is timed here and now.

    None on a GPU: nothing was measured there.
    """
    if study.device.type != "cpu":
        return None
    settings, layers = study.settings, len(study.layers)
    few = study.seconds_per_image()
    # In small networks most of the time goes by between the operations; many images share it.
    many = study.seconds_per_image(_MANY) if few * _MANY < 1 else few
    relevance, calibration, sensitivity = (
        Relevances(study).progress(),
        Sensitivities(study).calibration_progress(),
        Sensitivities(study).progress(),
    )
    measured = Evaluations(study).progress(FULL_PRECISION)
    left = measured.total - measured.done  # the first time, what all others are compared with runs before
    calibrated, analysed = len(study.calibration_pixels), len(study.analysis_images)
    time = find_recipe(settings.recipe).calibration_time
    of_layer = many * time.passes * calibrated / layers + time.layer_seconds
    seconds = {
        # Its batches are larger than the few and smaller than the many.
        "relevance": (few + many) / 2 * RELEVANCE_PASSES[settings.importance] * (relevance.total - relevance.done),
        "calibration": of_layer * (calibration.total - calibration.done),
        "sensitivity": (many * CELL_PASSES * analysed + CELL_SECONDS) * (sensitivity.total - sensitivity.done),
        "full precision": many * left * (1 if measured.done else 2) + EVALUATION_SECONDS if left else 0.0,
        "allocation": many * (QUANTIZED_PASS * measured.total + COMPENSATION_PASSES * calibrated)
        + layers * COMPENSATION_LAYER_SECONDS
        + EVALUATION_SECONDS,
    }
    images = {
        "relevance": relevance.total,
        "calibration": calibrated,
        "sensitivity": analysed,
        "full precision": measured.total,
        "allocation": measured.total,
    }
    return Estimate(seconds, images)


def in_words(seconds: float) -> str:
    """Return a time as people say it: `about 3 minutes on this machine`."""
    for unit, size, least in (("hour", 3600, 1.5), ("minute", 60, 1.5), ("second", 1, 1)):
        if seconds >= least * size:
            count = seconds / size
            # No more digits than the estimate is good for.
            shown = f"{round(2 * count) / 2:g}" if count < 5 and unit == "hour" else f"{_rounded(count)}"
            return f"about {shown} {unit}{'' if shown == '1' else 's'} on this machine"
    return "less than a second on this machine"


def _rounded(count: float) -> int:
    return round(count) if count < 20 else 5 * round(count / 5)
