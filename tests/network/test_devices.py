"""Choosing a device, its memory, and that every stage computes there: on a second device made for these tests."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import mixqvit
from mixqvit.criteria.hessian import hessian_trace_steps
from mixqvit.criteria.indicators import indicator_steps
from mixqvit.criteria.loss_change import loss_change_steps
from mixqvit.criteria.pairwise import block_pairs, pair_steps
from mixqvit.criteria.perturbation import squared_perturbations
from mixqvit.criteria.sensitivity.sweep import sensitivity_steps
from mixqvit.errors import MixQViTError
from mixqvit.network import devices
from mixqvit.network.devices import choose_device, describe, free_bytes, moved, precise_device
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.evaluation import evaluate
from mixqvit.quantization.model import quantize
from mixqvit.quantization.recipes import RECIPES
from mixqvit.relevance.captum_methods import STEPS
from mixqvit.relevance.methods import METHODS, importance_steps
from mixqvit.relevance.propagation import propagate
from mixqvit.relevance.quality import attribution_quality
from mixqvit.relevance.result import merge
from mixqvit.study.settings import Settings
from mixqvit.study.study import Study
from tests.device import DEVICE, There, second_device
from tests.network.test_out_of_memory import flat
from tests.tiny_models import ARCHITECTURES, TRANSFORMERS, small_transformer, tiny_images, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:one", "cpu:0", "mps:1", "cuda:-1", "1"])
def test_a_device_that_does_not_exist_is_refused(name, monkeypatch):
    monkeypatch.setenv("MIXQVIT_DEVICE", name)
    with pytest.raises(MixQViTError, match="is no device: use cpu, cuda"):
        choose_device()


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        monkeypatch.setenv("MIXQVIT_DEVICE", name)
        with pytest.raises(MixQViTError, match=f"MIXQVIT_DEVICE={name}, but"):
            choose_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("MIXQVIT_DEVICE", "cuda:1")
    with pytest.raises(MixQViTError, match=r"there is 1 CUDA GPU\(s\) here"):
        choose_device()


def test_the_fastest_device_is_chosen_and_the_variable_overrides(monkeypatch):
    monkeypatch.delenv("MIXQVIT_DEVICE", raising=False)
    there = {"cuda": True, "mps": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert choose_device() == torch.device("cuda:0")
    for name, expected in (("CPU ", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("mps", "mps")):
        monkeypatch.setenv("MIXQVIT_DEVICE", name)
        assert choose_device() == torch.device(expected)
    monkeypatch.delenv("MIXQVIT_DEVICE")
    there["cuda"] = False
    assert choose_device() == torch.device("mps")
    there["mps"] = False
    assert choose_device() == CPU


def test_the_cpu_is_described_with_its_free_memory(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 19_840_000_000)
    assert describe(CPU).startswith("CPU, ")
    assert describe(CPU).endswith("19.8 GB free")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert describe(torch.device("cuda:0")) == "NVIDIA H200, 19.8 GB free"


def test_free_memory_is_what_system_and_container_leave(monkeypatch):
    assert 0 < free_bytes(CPU) < psutil.virtual_memory().total
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    for limits, expected in (([], 5000), ([9000, 4000], 4000), ([-1], 0)):
        monkeypatch.setattr(devices, "_cgroup_free_bytes", lambda limits=limits: limits)
        assert free_bytes(CPU) == expected


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return folder / "fs", folder / "own"


def test_limits_of_containers_count(tmp_path):
    version_2 = groups(
        tmp_path / "2",
        "0::/user/app\n",
        {
            "user/memory.max": "max",
            "user/memory.current": "7000",
            "user/app/memory.max": "5000",
            "user/app/memory.current": "4500",
            "user/app/memory.stat": "anon 100\ninactive_file 250\n",
        },
    )
    assert devices._cgroup_free_bytes(*version_2) == [750]
    version_1 = groups(
        tmp_path / "1",
        "5:devices:/\n4:cpu,memory:/app/inner\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "9000",
            "memory/memory.usage_in_bytes": "1000",
            "memory/memory.stat": "total_inactive_file 100\n",
            "memory/app/memory.limit_in_bytes": "2000",
            "memory/app/memory.usage_in_bytes": "2500",
        },
    )
    assert devices._cgroup_free_bytes(*version_1) == [8100, 0]
    assert devices._cgroup_free_bytes(tmp_path, tmp_path / "nothing") == []


def test_the_second_device_is_one():
    """Mixing devices, NumPy without a copy, and double precision where there is none fail as on a GPU."""
    here = torch.arange(6.0)
    with second_device() as counts:
        there = here.to(DEVICE)
        assert isinstance(there, There) and there.device == DEVICE
        assert (there * 2 + torch.tensor([1.0], device=DEVICE)).tolist() == (here * 2 + 1).tolist()
        assert float((there + torch.tensor(3.0)).sum()) == float((here + 3).sum())  # single numbers may be anywhere
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        variable = there.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((variable**2).sum(), variable)
        assert gradient.tolist() == (2 * here).tolist()
        assert counts["aten::mul"] >= 1
    with second_device(has_double_precision=False):
        assert precise_device(DEVICE) == CPU
        with pytest.raises(TypeError, match="float64"):
            here.to(DEVICE).double()
    with second_device():
        assert precise_device(DEVICE) == DEVICE


def test_moving_keeps_what_is_no_tensor():
    graph = trace(tiny_model("vit"), tiny_images(1))
    calibration = calibrate(graph, tiny_images(2), bit_widths=(4,))
    assert calibration.on(CPU) is calibration
    assert graph.on(CPU) is graph
    copy = moved(calibration.layers, CPU)
    assert copy == dict(calibration.layers) or list(copy) == list(calibration.layers)
    assert {type(piece) for piece in copy.values()} == {type(piece) for piece in calibration.layers.values()}


@pytest.fixture(scope="module")
def models():
    graphs = {name: trace(tiny_model(name, torch.float32), tiny_images(1, torch.float32)) for name in ARCHITECTURES}
    pixels = tiny_images(4, torch.float32)
    return {name: (graph, calibrate(graph, pixels, bit_widths=(4, 8)), pixels) for name, graph in graphs.items()}


def sweep(graph, calibration, pixels):
    cells = sensitivity_steps(calibration, pixels, torch.arange(len(pixels)), bit_widths=(4,))
    return [[cell.effect["kl"].tolist(), cell.effect["cross_entropy"].tolist()] for cell in cells]


def quantized(graph, calibration, pixels):
    model = quantize(calibration, 4)
    return evaluate(model, pixels, None, graph(pixels)).image_kl


def importance(method):
    def run(graph, calibration, pixels):
        return list(merge(list(importance_steps(graph, pixels[:2], method=method))).importance.values())

    return run


def quality(graph, calibration, pixels):
    found = attribution_quality(graph, pixels[:1], method="gradient x activation")
    return [found.infidelity.tolist(), found.max_sensitivity.tolist()]


STAGES = {
    "full precision": lambda graph, calibration, pixels: graph(pixels).tolist(),
    "quantized": quantized,
    "sweep": sweep,
    "perturbations": lambda graph, calibration, pixels: [
        [piece.weight or {}, list(piece.operands)] for piece in squared_perturbations(calibration, pixels, (4,))
    ],
    "pairs": lambda graph, calibration, pixels: [
        list(found.values.values()) for found in pair_steps(calibration, pixels, block_pairs(graph.layers)[:3], (4, 8))
    ],
    "traces": lambda graph, calibration, pixels: [
        [batch.weights, batch.operands] for batch in hessian_trace_steps(graph, pixels[:2])
    ],
    "loss changes": lambda graph, calibration, pixels: [
        batch.harms
        for batch in loss_change_steps(calibration, pixels, lambda layer: [(4, 8 if layer.block is None else 4)])
    ],
    "indicators": lambda graph, calibration, pixels: [
        [found.weight or {}, list(found.operands)]
        for state in indicator_steps(graph, pixels, passes=1)
        for found in state.indicators.values()
    ],
    "quality": quality,
} | {method: importance(method) for method in METHODS}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["deit", "swin"])
def test_every_stage_computes_on_the_device_of_its_graph(models, stage, name, monkeypatch):
    for method in STEPS:
        monkeypatch.setitem(STEPS, method, 2)  # all steps are alike
    graph, calibration, pixels = models[name]
    expected = flat(STAGES[stage](graph, calibration, pixels))
    with second_device() as counts:
        there = calibration.on(DEVICE)
        counts.clear()
        found = flat(STAGES[stage](there.graph, there, pixels))
        assert sum(counts.values()) >= 30
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_calibrated_on_the_device(models, recipe):
    graph, _, pixels = models["deit"]
    bits = (4, 4) if RECIPES[recipe].one_setting else None

    def logits(own):
        calibration = calibrate(own, pixels, recipe, bits, **({} if bits else {"bit_widths": (4,)}))
        return quantize(calibration, 4)(pixels).cpu()

    expected = logits(graph)
    with second_device() as counts:
        found = logits(graph.on(DEVICE))
        assert sum(counts.values()) > 1000
        assert not isinstance(found, There)
    # A value halfway between two codes may be rounded the other way.
    assert float((found - expected).abs().median()) < 1e-4


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_architecture_runs_and_is_explained_on_the_device(name):
    module, pixels = small_transformer(name)
    graph = trace(module, pixels)
    expected, relevance = graph(pixels), propagate(graph, pixels[:1], rules="attnlrp", keep=())
    with second_device():
        there = graph.on(DEVICE)
        logits, found = there(pixels), propagate(there, pixels[:1], rules="attnlrp", keep=())
        assert isinstance(logits, There) and isinstance(found.pixels, There)
        torch.testing.assert_close(logits.cpu(), expected)
        torch.testing.assert_close(found.pixels.cpu(), relevance.pixels, rtol=1e-6, atol=1e-9)


SMALL = Settings(calibration_images=2, analysis_images=2, evaluation_images=4, importance="attnlrp")


def opened(device, tmp_path) -> Study:
    study = Study("digits_vit", settings=SMALL, store=mixqvit.Store(tmp_path))
    study.device = device
    assert study.graph.device == CPU
    return study


@pytest.mark.slow
@pytest.mark.parametrize("has_double_precision", [True, False])
def test_a_study_on_the_device_gives_what_it_gives_on_the_cpu(tmp_path, has_double_precision):
    """Without double precision calibration and relevance are computed on the CPU and the sweep is not."""
    here = opened(CPU, tmp_path / "here")
    with second_device(has_double_precision) as counts:
        there = opened(DEVICE, tmp_path / "there")
        assert there.evaluations.reference() == here.evaluations.reference()
        assert there.relevance().mean == pytest.approx(here.relevance().mean, rel=1e-4)
        calibration = there.calibration()
        assert calibration.graph.device == (DEVICE if has_double_precision else CPU)
        counts.clear()
        found = {name: row[8] for name, row in there.sensitivity().items()}
        assert sum(counts.values()) > 10_000
        assert found == pytest.approx({name: row[8] for name, row in here.sensitivity().items()}, rel=0.2)
        # Another session reads the calibration that this one saved.
        again = opened(DEVICE, tmp_path / "there")
        counts.clear()
        measured = again.evaluate(8)
        assert sum(counts.values()) > 1000
        assert measured.kl == pytest.approx(here.evaluate(8).kl, rel=0.2)
        again.pack(8, tmp_path / "model.mixqvit")
        *_, packed = again.packing.evaluate_steps(tmp_path / "model.mixqvit")
        assert packed.result.kl == pytest.approx(measured.kl, rel=1e-3)
        assert there.image_relevance(0).predicted == here.image_relevance(0).predicted


def test_tensors_of_the_wrong_device_are_found(models):
    """The check itself: a quantizer that stayed behind does not go unnoticed."""
    graph, calibration, pixels = models["deit"]
    with second_device():
        behind = replace(calibration, graph=graph.on(DEVICE))
        with pytest.raises(RuntimeError, match="same device"):
            quantize(behind, 4, compensation=None)(pixels)
