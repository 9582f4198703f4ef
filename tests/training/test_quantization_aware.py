"""Quantization-aware training on a tiny model: resumed bit for bit, annealed, ended early, ended by NaN."""

from dataclasses import replace

import pytest
import torch

import mixqvit
from mixqvit.errors import TrainingError
from mixqvit.images.images import Images
from mixqvit.images.training_images import TrainingBatch
from mixqvit.network.bits import FULL_PRECISION
from mixqvit.training import quantization_aware
from mixqvit.training.machine import Machine
from mixqvit.training.quantization_aware import SavedEpoch, Step, TrainingData, restored, train_steps
from mixqvit.training.settings import TrainingSettings
from mixqvit.training.trainable import TrainableModel
from tests.tiny_models import ARCHITECTURES, tiny_images, tiny_model

CPU = Machine(torch.device("cpu"))


class RandomImages:
    """Training images of a test: noise that follows from seed and epoch."""

    fingerprint = source = "noise"

    def __len__(self) -> int:
        return 40

    def batches(self, seed, epoch, batch, shard=(0, 1)):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for part in torch.randn(40, 1, 16, 16, generator=generator).split(batch):
            own = part.tensor_split(shard[1])[shard[0]]
            yield TrainingBatch((), own, None, len(part))


@pytest.fixture(scope="module")
def graphs():
    return {
        name: mixqvit.trace(tiny_model(name, torch.float32), tiny_images(4, torch.float32)) for name in ARCHITECTURES
    }


def data_for(graph) -> TrainingData:
    pixels = tiny_images(24, torch.float32)
    labels = torch.arange(12) % 5
    names = tuple(map(str, range(12)))
    evaluation = Images("noise", "evaluation", pixels[:12], labels, tuple("abcde"), names, (0.0,), (1.0,))
    with torch.no_grad():
        return TrainingData(RandomImages(), pixels[12:], 8, evaluation, graph(pixels[:12]), graph.task)


def bits_for(graph, bits=3):
    return {layer.name: (bits, bits) for layer in graph.layers}


def train(graph, settings, saved_epoch=None, data=None, machine=CPU, bits=None):
    pieces = train_steps(graph, bits or bits_for(graph), data or data_for(graph), settings, machine, saved_epoch)
    return list(pieces)


def saved_epochs(pieces):
    return [piece for piece in pieces if isinstance(piece, SavedEpoch)]


@pytest.mark.parametrize("method", ["lsq", "ofq"])
def test_two_epochs_straight_are_one_and_a_restart_and_one(graphs, method):
    settings = TrainingSettings(method, epochs=3, batch=8)
    straight = saved_epochs(train(graphs["vit"], settings))
    # A saved epoch as a file gives it back: tensors of its own, the record as JSON does.
    stopped = SavedEpoch(straight[0].run, {name: tensor.clone() for name, tensor in straight[0].tensors.items()})
    resumed = saved_epochs(train(graphs["vit"], settings, stopped))
    assert [saved_epoch.run.epochs[-1].epoch for saved_epoch in resumed] == [2, 3]
    for one, other in zip(straight[1:], resumed, strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        without_time = [tuple(replace(epoch, seconds=0) for epoch in c.run.epochs) for c in (one, other)]
        assert without_time[0] == without_time[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_loss_and_leaves_the_model_alone(graphs, architecture):
    graph = graphs[architecture]
    before = graph.fingerprint
    pieces = train(graph, TrainingSettings("ofq" if architecture == "swin" else "lsq", epochs=4, batch=8))
    run = saved_epochs(pieces)[-1].run
    assert graph.fingerprint == before
    assert not any(parameter.requires_grad for parameter in graph.module.parameters())
    assert run.epochs[-1].loss < run.epochs[0].loss
    steps = [piece for piece in pieces if isinstance(piece, Step)]
    assert [step.done for step in steps] == list(range(1, 21)) and steps[-1].total == 20


@pytest.mark.parametrize("method", ["lsq", "ofq"])
def test_the_trained_model_is_a_quantized_model_of_the_same_function(graphs, method):
    graph = graphs["deit"]
    settings = TrainingSettings(method, epochs=2, batch=8)
    bits = bits_for(graph) | {"blocks.0.mlp.fc1": (FULL_PRECISION, 4), "blocks.0.mlp.fc2": (2, FULL_PRECISION)}
    data = data_for(graph)
    saved_epoch = saved_epochs(train(graph, settings, data=data, bits=bits))[-1]
    model = restored(graph, bits, data.calibration[:8], saved_epoch)
    quantized, pixels = model.quantized(), tiny_images(4, torch.float32)
    torch.testing.assert_close(quantized(pixels), model(pixels).detach(), rtol=1e-6, atol=1e-6)
    assert quantized.source == graph.fingerprint and quantized.recipe == method
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not torch.allclose(quantized(pixels), model(pixels).detach())  # they share nothing
    sizes = {(found.layer, found.operand): found for found in model.step_sizes()}
    assert ("blocks.0.mlp.fc1", "weight") not in sizes and ("blocks.0.mlp.fc1", "input") in sizes
    assert any(found.before != found.after for found in sizes.values())


def test_the_weights_kept_are_those_of_the_least_validation_loss(graphs, monkeypatch):
    losses = iter([0.5, 0.2, 0.4, 0.3])
    monkeypatch.setattr(quantization_aware._Reference, "measured", lambda self, quantized: (next(losses), None, 1.0))
    found = saved_epochs(train(graphs["vit"], TrainingSettings(epochs=4, batch=20)))
    assert [saved_epoch.run.best for saved_epoch in found] == [1, 2, 2, 2]
    second = {name: found[1].tensors[name] for name in found[1].kept}
    for later in found[2:]:
        assert all(torch.equal(later.kept[name], tensor) for name, tensor in second.items())
        assert any(not torch.equal(later.tensors[name], tensor) for name, tensor in second.items())


def test_it_ends_early_when_the_loss_no_longer_falls(graphs, monkeypatch):
    losses = iter([0.5, 0.2, 0.4, 0.3, 0.1])
    monkeypatch.setattr(quantization_aware._Reference, "measured", lambda self, quantized: (next(losses), None, 1.0))
    run = saved_epochs(train(graphs["vit"], TrainingSettings(epochs=5, batch=40, patience=2)))[-1].run
    assert len(run.epochs) == 4 and run.stopped_early and run.finished and run.best == 2


def test_a_loss_that_is_no_number_ends_the_run_with_the_last_epoch_kept(graphs):
    class Broken(RandomImages):
        def batches(self, seed, epoch, batch, shard=(0, 1)):
            for found in super().batches(seed, epoch, batch, shard):
                yield replace(found, pixels=found.pixels * torch.nan) if epoch == 2 else found

    data = replace(data_for(graphs["vit"]), training=Broken())
    found = []
    with pytest.raises(TrainingError, match=r"loss is nan in step 6 .*Epoch 1 is saved.*lower learning rate"):
        for piece in train_steps(
            graphs["vit"], bits_for(graphs["vit"]), data, TrainingSettings(epochs=3, batch=8), CPU
        ):
            found.append(piece)
    (kept,) = saved_epochs(found)
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


def test_weights_that_are_no_numbers_are_not_saved(graphs, monkeypatch):
    monkeypatch.setattr(quantization_aware._Reference, "measured", lambda self, quantized: (float("nan"), None, 1.0))
    with pytest.raises(TrainingError, match=r"after epoch 1, .*No epoch is saved yet"):
        train(graphs["vit"], TrainingSettings(epochs=2, batch=40))


def test_annealing_moves_no_weight_outside_the_band(graphs, monkeypatch):
    graph, frozen = graphs["vit"], []
    original = quantization_aware._anneal

    def watched(model, optimizer):
        before = [(weight.detach().clone(), quantizer.quantizer(weight)) for weight, quantizer in model.weights()]
        share = original(model, optimizer)
        for (old, quantizer), (weight, _) in zip(before, model.weights(), strict=True):
            is_free = quantization_aware.near_threshold(old, quantizer)
            assert torch.equal(weight.detach()[~is_free], old[~is_free])
            frozen.append((int((weight.detach() != old).sum()), int(is_free.sum())))
        return share

    monkeypatch.setattr(quantization_aware, "_anneal", watched)
    settings = TrainingSettings("ofq", epochs=3, batch=8)
    assert settings.annealing_epochs == 1
    run = saved_epochs(train(graph, settings))[-1].run
    assert [epoch.trained_weights == 1 for epoch in run.epochs] == [True, True, False]
    assert sum(moved for moved, _ in frozen) > 0  # those in the band do move
    assert all(moved <= free for moved, free in frozen)


def test_gradients_are_the_same_whether_a_batch_is_whole_or_in_parts(graphs):
    """What each of two processes computes, averaged, is what one computes."""
    graph, data = graphs["vit"], data_for(graphs["vit"])

    def gradients(machine):
        model = TrainableModel(graph, bits_for(graph), "lsq", data.calibration[:8])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        batch = next(data.training.batches(0, 1, 7, (machine.rank, machine.processes)))
        quantization_aware._step(model, model, graph, optimizer, batch, machine)
        return [parameter.grad.clone() for parameter in model.step_parameters()]

    whole = gradients(CPU)
    parts = [gradients(Machine(torch.device("cpu"), rank, 2)) for rank in range(2)]
    for one, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close((first + second) / 2, one, rtol=1e-4, atol=1e-7)


def test_settings_refuse_what_is_not_possible():
    for wrong in ({"method": "x"}, {"epochs": 0}, {"batch": 0}, {"seed": -1}, {"learning_rate": 2.0}, {"patience": 0}):
        with pytest.raises(TrainingError):
            TrainingSettings(**wrong)


def test_the_earlier_name_of_the_method_still_works():
    with pytest.warns(DeprecationWarning, match="method now"):
        made = TrainingSettings(recipe="ofq", epochs=3)
    assert made == TrainingSettings("ofq", epochs=3)
    with pytest.warns(DeprecationWarning, match="method now"):
        assert made.recipe == "ofq"
    with pytest.warns(DeprecationWarning, match="method now"):
        assert replace(TrainingSettings(epochs=3), recipe="ofq") == made
