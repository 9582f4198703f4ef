"""A study: one model, its images and settings. It ties the stages together and saves every finished piece.

Everything long is a generator of `Progress`; started again, it goes on from what is saved. Results leave a study as
numbers and NumPy arrays, so that pages and the command line need no torch.
"""

from mixqvit.study.allocation import Allocations
from mixqvit.study.base import StudyBase
from mixqvit.study.channels import ChannelStudy
from mixqvit.study.comparisons import Comparisons
from mixqvit.study.evaluation import Evaluations
from mixqvit.study.kept import KeptAllocations
from mixqvit.study.packing import Packing
from mixqvit.study.part import of
from mixqvit.study.quantizers import Quantizers
from mixqvit.study.relevance import Relevances
from mixqvit.study.scores import Scores
from mixqvit.study.sensitivity import Sensitivities
from mixqvit.study.settings import Settings
from mixqvit.study.training import Trainings

__all__ = ["Settings", "Study"]


class Study(StudyBase):
    """Everything about one model on its images under one set of settings.

    What it can do is in its parts, one for each subject; what is asked for most has a short name here. Results are kept
    in memory after the first use and never changed, so one study can serve several browser sessions.

    Attributes:
        relevances: Layer importance and explanations.
        sensitivities: Calibration and sensitivity.
        evaluations: What any bits measure.
        scores: What the strategies have to know about the layers.
        allocations: Bits within a budget, and the frontier.
        kept: Allocations that a person keeps.
        quantizers: Quantizers and recipes side by side.
        packing: Quantized models as files.
        training: Quantization-aware training.
        comparisons: Strategies, and kinds of importance, side by side; how long all will take.
        channels: The channels of post-LayerNorm inputs: which are outliers, and what quantization makes of them.
    """

    relevances = property(Relevances)
    sensitivities = property(Sensitivities)
    evaluations = property(Evaluations)
    scores = property(Scores)
    allocations = property(Allocations)
    kept = property(KeptAllocations)
    quantizers = property(Quantizers)
    packing = property(Packing)
    training = property(Trainings)
    comparisons = property(Comparisons)

    @property
    def channels(self) -> ChannelStudy:
        """The channels of post-LayerNorm inputs."""
        return self.remembered(
            "channels", lambda: ChannelStudy(self.graph, self.calibration_pixels, self.evaluation_images)
        )

    importance_methods = property(of(Relevances, Relevances.methods))
    relevance_rules = property(of(Relevances, Relevances.rules))
    relevance = of(Relevances, Relevances.importance)
    relevance_steps = of(Relevances, Relevances.steps)
    image_relevance = of(Relevances, Relevances.image)

    calibration = of(Sensitivities, Sensitivities.calibration)
    calibration_steps = of(Sensitivities, Sensitivities.calibration_steps)
    metrics = property(of(Sensitivities, Sensitivities.metrics))
    sensitivity = of(Sensitivities, Sensitivities.harms)
    sensitivity_steps = of(Sensitivities, Sensitivities.steps)
    sensitivity_intervals = of(Sensitivities, Sensitivities.harm_intervals)
    saved_sensitivity = of(Sensitivities, Sensitivities.saved)

    strategies = property(of(Allocations, Allocations.strategies))
    score_steps = of(Scores, Scores.steps)
    allocate = of(Allocations, Allocations.allocate)
    allocation = of(Allocations, Allocations.allocation)
    uniform = of(Allocations, Allocations.uniform)
    uniform_beside = of(Allocations, Allocations.uniform_beside)
    predicted_harm = of(Allocations, Allocations.predicted_harm)
    frontier_steps = of(Allocations, Allocations.frontier_steps)
    saved_frontier = of(Allocations, Allocations.saved_frontier)

    resolved = of(Evaluations, Evaluations.resolved)
    evaluate = of(Evaluations, Evaluations.evaluation)
    evaluate_steps = of(Evaluations, Evaluations.steps)
    saved_evaluation = of(Evaluations, Evaluations.saved)
    pack = of(Packing, Packing.pack)

    first_last_uniform = of(Trainings, Trainings.first_last_uniform)
    first_last_request = of(Trainings, Trainings.first_last_request)
    training_steps = of(Trainings, Trainings.steps)
    trained = of(Trainings, Trainings.trained)
    evaluate_trained_steps = of(Trainings, Trainings.evaluate_steps)
    pack_trained = of(Trainings, Trainings.pack)

    estimate = of(Comparisons, Comparisons.estimate)
    compare_strategies_steps = of(Comparisons, Comparisons.strategies_steps)
    method_comparison_steps = of(Comparisons, Comparisons.methods_steps)
