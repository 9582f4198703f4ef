"""What every stage computes on a tiny seeded model, beside what it computed when its version was raised last.

`python -m tests.stages.test_golden` writes the values of the stages whose version has changed, or that are new.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixqvit.criteria.hessian import HessianTraces
from mixqvit.criteria.indicators import LearnedSteps
from mixqvit.criteria.loss_change import LossChanges
from mixqvit.criteria.pairwise import Pairs
from mixqvit.criteria.perturbation import Perturbations
from mixqvit.criteria.sensitivity.stage import Sweep
from mixqvit.quantization.calibration_stage import own_calibration
from mixqvit.quantization.evaluation_stage import FullPrecision
from mixqvit.quantization.fidelity_stage import Checked
from mixqvit.relevance.stages import AttributionScores, LayerImportance
from mixqvit.stages.stage import STAGES, Stage
from mixqvit.study.study import Study
from mixqvit.training.settings import TrainingSettings
from mixqvit.training.stage import TrainedEvaluation
from tests.stages.tiny_study import tiny_study

GOLDEN = Path(__file__).parent / "golden"
MOST = 30  # pieces of a stage
RENEW = "python -m tests.stages.test_golden"
TOLERANCE = 1e-4
"""Relative, of the largest number of a list: threads and machines sum in another order."""


def examples(study: Study) -> dict[str, Stage]:
    """Return one stage of each kind, by name."""
    training = study.training.stage(study.resolved(4), TrainingSettings("ofq", epochs=2, batch=8))
    found = (
        FullPrecision(),
        own_calibration(study),
        Checked(study.recipe),
        study.evaluations.stage(4),
        Sweep("both"),
        LayerImportance("chefer", "share"),
        AttributionScores("attnlrp"),
        HessianTraces(),
        Perturbations(),
        LossChanges(tied=False),
        Pairs(),
        LearnedSteps(),
        training,
        TrainedEvaluation(training),
    )
    return {stage.name: stage for stage in found}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return tiny_study(tmp_path_factory.mktemp("store"))


def test_every_stage_has_a_value():
    names = {name for name, stage in STAGES.items() if stage.__module__.startswith("mixqvit.")}
    saved = {json.loads(file.read_text())["stage"] for file in GOLDEN.glob("*.json")}
    assert saved == names, f"a stage is new, or gone. Add an example of it and run: {RENEW}"


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda file: file.stem)
def test_numbers_are_those_of_the_version(study, file):
    document = json.loads(file.read_text())
    stage = examples(study)[document["stage"]]
    assert stage.version == document["version"], f"the version was raised. Renew its value: {RENEW}"
    found = plain(some(study, stage))
    differences = list(differing(found, document["pieces"], stage.name))
    assert not differences, (
        f"the numbers of stage {stage.name} have changed: {'; '.join(differences[:3])}. If that is meant, raise its "
        f"version, so that nothing saved by the old one is taken for new, and renew its value: {RENEW}"
    )


def some(study: Study, stage: Stage) -> dict[str, Any]:
    """Return the computed pieces of a stage, of many some from all parts of the network."""
    study.result(stage)
    pieces = study.saved(stage)
    return {name: pieces[name] for name in list(pieces)[:: 1 + len(pieces) // MOST]}


def plain(value: Any) -> Any:
    """Return pieces as JSON writes them: numbers, texts, lists and mappings with texts as keys."""
    if isinstance(value, torch.Tensor | np.ndarray):
        values = torch.as_tensor(value).detach().double().flatten()
        # Of large tensors a few numbers and two sums, which no change leaves alone.
        kept = values if len(values) <= 16 else torch.cat([values[:: len(values) // 4], _moments(values)])
        return plain(kept.tolist())
    if is_dataclass(value):
        own = {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.name != "seconds"}
        return {"class": type(value).__name__} | own
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items() if name != "seconds"}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _moments(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values.sum(), values.square().sum()])


def differing(found: Any, expected: Any, where: str):
    """Yield in words where two documents differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and found.keys() == expected.keys():
        for name in expected:
            yield from differing(found[name], expected[name], f"{where}, {name}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        if all(isinstance(value, int | float) for value in (*found, *expected)):
            if not np.allclose(found, expected, TOLERANCE, TOLERANCE * max(map(abs, expected), default=0)):
                yield f"{where}: {found} instead of {expected}"
        else:
            for place, pair in enumerate(zip(found, expected, strict=True)):
                yield from differing(*pair, f"{where}, {place}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not np.isclose(found, expected, TOLERANCE, 1e-9):
            yield f"{where}: {found} instead of {expected}"
    elif found != expected:
        yield f"{where}: {found} instead of {expected}"


def renew() -> None:
    """Write the values of all stages that are new or have another version."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        study = tiny_study(Path(folder))
        for name, stage in examples(study).items():
            file = GOLDEN / f"{name.replace(' ', '_')}.json"
            if not file.exists() or json.loads(file.read_text())["version"] != stage.version:
                pieces = ",\n".join(
                    f"{json.dumps(item)}: {json.dumps(plain(piece))}" for item, piece in some(study, stage).items()
                )
                file.write_text(
                    f'{{"stage": {json.dumps(name)}, "version": {stage.version}, "pieces": {{\n{pieces}\n}}}}\n'
                )
                print(f"{file.name}: version {stage.version}")


if __name__ == "__main__":
    renew()
