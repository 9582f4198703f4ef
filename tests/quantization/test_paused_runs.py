"""A setting that is run from the first layer that changed gives what a whole run gives."""

import pytest
import torch

from mixqvit.network.bits import resolve_bits
from mixqvit.network.tracing import trace
from mixqvit.quantization.calibration import calibrate
from mixqvit.quantization.model import quantize
from mixqvit.quantization.paused_runs import (
    PausedRun,
    PausedRuns,
    latest_paused_run,
    layers_before,
    pause_nodes,
    run_from_paused,
)
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model

LIMIT = 10 * 2**20


@pytest.fixture(scope="module", params=ARCHITECTURES)
def calibration(request):
    graph = trace(tiny_model(request.param), tiny_images(1))
    return calibrate(graph, tiny_images(4))


def settings(graph):
    """Bits that differ from uniform 4 in one layer: the first, one in the middle, the last; twice the same."""
    yield resolve_bits(graph.layers, 4)
    for index in (-1, len(graph.layers) // 2, 0, -1):
        changed = resolve_bits(graph.layers, 4)
        name = graph.layers[index].name
        yield changed | {name: (7, changed[name][1])}
    yield resolve_bits(graph.layers, {graph.layers[0].name: 5})  # all others in full precision


def test_compensation_and_logits_are_those_of_whole_runs_bit_for_bit(calibration):
    graph, images = calibration.graph, tiny_images(6)
    paused_runs = PausedRuns(LIMIT)
    for bits in settings(graph):
        plain = quantize(calibration, bits)
        resumed = quantize(calibration, bits, paused_runs=paused_runs)
        assert plain.operations.keys() == resumed.operations.keys()
        with torch.no_grad():
            logits = run_from_paused(graph, images, resumed.operations, bits, paused_runs, "images")
        assert torch.equal(logits, plain(images))


def test_a_run_starts_where_the_bits_first_differ(calibration, monkeypatch):
    graph = calibration.graph
    paused_runs = PausedRuns(LIMIT)
    bits = resolve_bits(graph.layers, 4)
    with torch.no_grad():
        operations = quantize(calibration, bits, None).operations
        run_from_paused(graph, tiny_images(2), operations, bits, paused_runs, "images")
    nodes = pause_nodes(graph)
    for name in (graph.layers[-1].name, graph.layers[len(graph.layers) // 2].name):
        start = latest_paused_run(paused_runs, "images", graph, bits | {name: (8, 8)})
        before = {layer.name for layer in layers_before(graph, start.node)}
        assert name not in before
        following = nodes[nodes.index(start.node) + 1 :]
        assert not following or name in {layer.name for layer in layers_before(graph, following[0])}
    assert latest_paused_run(paused_runs, "images", graph, bits | {graph.layers[0].name: (8, 8)}) is None
    assert latest_paused_run(paused_runs, "other images", graph, bits) is None


def test_memory_is_bounded_and_what_was_used_last_stays():
    paused_runs = PausedRuns(16_000)
    for number in range(10):
        paused_runs.put(number, PausedRun("node", {"x": torch.zeros(500)}, {}))  # 2,000 bytes each
        paused_runs.get(0)
    kept = [number for number in range(10) if paused_runs.get(number) is not None]
    assert kept == [0, 3, 4, 5, 6, 7, 8, 9]
    paused_runs.put("too large", PausedRun("node", {"x": (torch.zeros(501), 3)}, {}))
    assert paused_runs.get("too large") is None
