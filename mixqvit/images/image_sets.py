"""The images of a study: what calibrates, what evaluates, and why these."""

from dataclasses import dataclass, field

from mixqvit.images.images import Images
from mixqvit.images.sampling import Sampling

__all__ = ["ImageSets", "Sample"]


@dataclass(frozen=True)
class Sample:
    """Which images were taken, and why.

    Attributes:
        found: Image files in the source.
        skipped: Name and reason of those that could not be used.
        labelled: Whether the images have labels.
        classes: Classes that occur in the source; 0 without labels.
        how: How the evaluation images were chosen, one sentence.
        seed: Of the choice.
        notes: Sentences on how the source was understood.
    """

    found: int
    skipped: tuple[tuple[str, str], ...]
    labelled: bool
    classes: int
    how: str
    seed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImageSets:
    """The images of a study; calibration and evaluation have none in common.

    Attributes:
        calibration: Images that quantizers, relevance and sensitivity look at.
        evaluation: Images to measure on.
        sample: Which ones they are, and why.
        sampling: What they were loaded with.
    """

    calibration: Images
    evaluation: Images
    sample: Sample
    sampling: Sampling = field(default_factory=Sampling)
