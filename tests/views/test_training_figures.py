"""The Training page's figures show the epochs, step sizes and measurements that they are given."""

from dataclasses import replace

import numpy as np
import pytest

from mixqvit.allocation.costs import cost
from mixqvit.network.bits import uniform
from mixqvit.tasks.evaluation import AGREEMENT, TOP1
from mixqvit.training.settings import StepSizes, TrainingEpoch, TrainingRun, TrainingSettings
from mixqvit.views import training, training_steps, training_table
from tests.views.allocations import BITS, LAYERS, STORAGE, evaluation

SETTINGS = TrainingSettings("ofq", 4, patience=2)


def epoch(number: int, validation: float, top1: float | None = 0.9, **changes) -> TrainingEpoch:
    values = {"trained_weights": 1.0, "seconds": 10.0} | changes
    return TrainingEpoch(number, 2 * validation, 0.8 + number / 100, validation, top1, 0.95, 1e-3, **values)


RUN = TrainingRun(SETTINGS, (epoch(1, 0.4), epoch(2, 0.1, 0.93), epoch(3, 0.2, 0.92)), 1000)
BARE = TrainingRun(SETTINGS, (epoch(1, 0.4, None),), 1000)


def trace(figure, name):
    return next(found for found in figure.data if found.name == name)


def test_losses_are_those_of_every_epoch_beside_post_training():
    figure = training.loss_curves(RUN, SETTINGS, evaluation(100, kl=0.75))
    assert list(trace(figure, "training images").x) == [1, 2, 3]
    assert list(trace(figure, "training images").y) == [0.8, 0.2, 0.4]
    assert list(trace(figure, "calibration images").y) == [0.4, 0.1, 0.2]
    assert set(trace(figure, "post-training").y) == {0.75}
    assert figure.layout.yaxis.type == "log"
    assert "loss 0.2 nats on training, 0.1 on calibration images" in trace(figure, "training images").text[1]


def test_accuracies_are_those_of_every_epoch_beside_both_lines():
    figure = training.accuracy_curves(RUN, SETTINGS, TOP1, evaluation(190), evaluation(20))
    assert list(trace(figure, "evaluation images").y) == pytest.approx([90, 93, 92])
    assert list(trace(figure, "training images (agreement)").y) == pytest.approx([81, 82, 83])
    assert set(trace(figure, "full precision").y) == {95.0}
    assert set(trace(figure, "post-training").y) == {10.0}
    low, high = evaluation(190).interval
    assert f"{100 * low:.1f} to {100 * high:.1f}" in trace(figure, "full precision").hovertemplate


def test_without_labels_agreement_takes_the_place_of_accuracy():
    figure = training.accuracy_curves(BARE, SETTINGS, AGREEMENT, evaluation(None), None)
    assert list(trace(figure, "evaluation images").y) == [95.0]
    assert set(trace(figure, "full precision").y) == {75.0}
    assert "top-1" not in trace(figure, "evaluation images").text[0]
    assert "agreement" in figure.layout.yaxis.title.text


def test_the_epoch_whose_weights_are_kept_is_marked_in_both():
    for figure, height in (
        (training.loss_curves(RUN, SETTINGS, None), 0.1),
        (training.accuracy_curves(RUN, SETTINGS, TOP1, None, None), 93.0),
    ):
        assert (list(trace(figure, "kept").x), list(trace(figure, "kept").y)) == ([2], [pytest.approx(height)])


def test_annealing_epochs_are_shaded_only_where_there_are_any():
    (shade,) = training.loss_curves(RUN, SETTINGS, None).layout.shapes
    assert (shade.x0, shade.x1) == (3.5, 4.5)
    assert not training.loss_curves(RUN, TrainingSettings("lsq", 4), None).layout.shapes


def test_before_the_first_epoch_the_axes_are_there():
    for figure in (
        training.loss_curves(None, SETTINGS, None),
        training.accuracy_curves(None, SETTINGS, TOP1, None, None),
    ):
        assert figure.layout.xaxis.range == (0.4, 4.6)
        assert figure.layout.yaxis.range is not None
        assert not any(found.x for found in figure.data)
        assert not any(found.name == "kept" for found in figure.data)
    assert training.curve_frame(None).empty


def test_the_frame_has_every_number_of_every_epoch():
    frame = training.curve_frame(RUN)
    assert frame["validation loss (nats)"].tolist() == [0.4, 0.1, 0.2]
    assert frame["kept"].tolist() == [False, True, False]
    assert training.curve_frame(BARE)["top-1"].isna().all()


def test_words_say_how_far_it_is_which_epoch_is_kept_and_why_it_ended():
    assert training.run_words(RUN).startswith("3 of 4 epochs are trained and saved.")
    assert "weights of epoch 2 are kept: its loss on the calibration images, 0.1 nats" in training.run_words(RUN)
    assert "30.0 s of computing on 1,000 training images, 10.0 s an epoch" in training.run_words(RUN)
    early = training.run_words(replace(RUN, stopped_early=True))
    assert early.startswith("Ended early after 3 of 4 epochs: no smaller validation loss for 2 epochs.")
    assert training.run_words(replace(RUN, epochs=(*RUN.epochs, epoch(4, 0.3)))).startswith("Finished after 4 epochs.")


STEPS = (
    StepSizes("patch_embed.proj", "weight", 8, (0.1, 0.2, 0.4), (0.1, 0.4, 1.6)),
    StepSizes("patch_embed.proj", "input", 8, (0.5,), (0.25,)),
    StepSizes("blocks.0.attn.query_key", "input", 2, (1.0,), (1.5,)),
    StepSizes("blocks.0.attn.matmul1", "first", 2, (1.0,), (1.0,)),
    StepSizes("blocks.0.attn.matmul1", "second", 2, (2.0,), (1.0,)),
    StepSizes("head", "input", 8, (1.0,), (8.0,)),
)


def test_step_sizes_are_shown_as_ratios_in_network_order():
    figure = training_steps.change_figure(STEPS, LAYERS)
    weights = trace(figure, "weights (median channel)")
    assert (list(weights.x), list(weights.y)) == ([0], [2.0])
    low, high = np.percentile([1, 2, 4], (5, 95))
    assert (weights.error_y.arrayminus[0], weights.error_y.array[0]) == pytest.approx((2 - low, high - 2))
    inputs = trace(figure, "inputs")
    assert (list(inputs.x), list(inputs.y)) == ([0, 1, 3], [0.5, 1.5, 8.0])
    assert list(trace(figure, "second factor (K, V)").y) == [0.5]
    assert "step size 0.5 → 0.25" in inputs.text[0]
    assert "3 channels" in weights.text[0]
    # The merged layer is none of the model's; its block is that of the product beside it.
    assert list(figure.layout.xaxis.ticktext) == ["block 0"]
    assert list(figure.layout.xaxis.tickvals) == [1]


def test_histograms_count_every_step_size_before_and_after():
    for kind, count in (("weights", 3), ("activations", 5)):
        frame = training_steps.histogram_frame(STEPS, kind)
        assert frame["before"].sum() == frame["after"].sum() == count
        figure = training_steps.histogram_figure(STEPS, kind)
        assert list(trace(figure, "after training").y) == frame["after"].tolist()
        outline = trace(figure, "calibrated, before")
        assert list(outline.y)[::2] == frame["before"].tolist()
        assert len(outline.x) == len(outline.y)
    frame = training_steps.histogram_frame(STEPS, "activations")
    last = frame.iloc[-1]
    assert last["from"] < 8.0 <= last["to"]
    assert (last["before"], last["after"]) == (0, 1)


def test_a_step_size_that_shrank_to_nothing_is_drawn_at_the_edge():
    vanished = [StepSizes("head", "weight", 8, (0.1, 0.2), (1e-7, 0.2)), StepSizes("head", "input", 8, (1.0,), (1e-7,))]
    figure = training_steps.change_figure(vanished, LAYERS)
    assert list(trace(figure, "inputs").y) == [1 / 8]
    assert "1 → 1e-07" in trace(figure, "inputs").text[0]
    frame = training_steps.histogram_frame(vanished, "weights")
    assert frame["after"].tolist()[0] == 1
    assert frame["after"].sum() == 2
    assert frame["from"].iloc[0] == pytest.approx(0.1 / 8, rel=1e-3)
    figure = training_steps.histogram_figure(vanished, "weights")
    assert trace(figure, "after training").text[0].startswith("<b>up to ")


def test_a_model_without_weights_quantized_has_an_empty_histogram():
    assert training_steps.histogram_frame(STEPS[1:], "weights").empty
    assert len(training_steps.histogram_figure(STEPS[1:], "weights").data[0].y) == 0
    assert training_steps.step_words(()) == ""


def test_words_and_frame_name_what_moved_farthest():
    assert "inputs of `head`, at 8 bits: × 8.00" in training_steps.step_words(STEPS)
    frame = training_steps.change_frame(STEPS)
    assert frame["ratio"].tolist() == [1.0, 2.0, 4.0, 0.5, 1.5, 1.0, 0.5, 8.0]
    assert frame["channel"].isna().tolist() == [False] * 3 + [True] * 5


COST = cost(LAYERS, BITS, STORAGE)
FULL = training_table.Setting("", "", 32, cost(LAYERS, uniform(LAYERS, 32), STORAGE), evaluation(196))
POST = training_table.Setting("a", "uniform", 2, COST, evaluation(20), is_shown=True)
DONE = replace(RUN, stopped_early=True)
TRAINED = replace(POST, evaluation=evaluation(190, kl=0.01), run=DONE, cost=replace(COST, weight_bytes=10**6))
UNFINISHED = replace(POST, bits="b", allocation="mixed", average_bits=2.5, evaluation=None, run=RUN, is_shown=False)
ROWS = [FULL, POST, TRAINED, UNFINISHED]


def test_the_table_has_a_row_for_every_model_measured_or_not():
    frame = training_table.setting_frame(ROWS).set_index("model")
    assert list(frame.index) == [
        "full precision",
        "uniform 2 bits, post-training",
        "uniform 2 bits, ofq",
        "mixed 2.50 bits, ofq",
    ]
    trained = frame.loc["uniform 2 bits, ofq"]
    low, high = TRAINED.evaluation.interval
    assert (trained["top-1 (%)"], trained["from (%)"], trained["to (%)"]) == (95.0, 100 * low, 100 * high)
    assert (trained["agreement (%)"], trained["KL (nats)"]) == (75.0, 0.01)
    assert trained["size (MB)"] == pytest.approx(TRAINED.cost.size_bytes / 1e6)
    assert (trained["epochs"], trained["seed"], trained["minutes"]) == ("3", 0, 0.5)
    assert frame["epochs"].iloc[3] == "3 of 4"
    assert frame["top-1 (%)"].isna().tolist() == [False, False, False, True]
    assert frame["shown"].tolist() == [False, True, True, False]


def test_a_model_that_cannot_be_trained_so_has_no_size():
    frame = training_table.setting_frame([FULL, replace(TRAINED, cost=None)])
    assert frame["size (MB)"].isna().tolist() == [False, True]
    assert len(training_table.setting_figure([replace(TRAINED, cost=None)], TOP1).data) == 0


def test_the_figure_has_sizes_intervals_and_what_training_gained():
    figure = training_table.setting_figure(ROWS, TOP1)
    post, trained = trace(figure, "post-training, uniform"), trace(figure, "ofq, uniform")
    assert (list(post.x), list(post.y)) == ([COST.size_bytes / 1e6], [10.0])
    assert (list(trained.x), list(trained.y)) == ([TRAINED.cost.size_bytes / 1e6], [95.0])
    low, high = TRAINED.evaluation.interval
    assert (trained.error_y.arrayminus[0], trained.error_y.array[0]) == pytest.approx((95 - 100 * low, 100 * high - 95))
    assert list(trace(figure, "gained by training").y) == [10.0, 95.0, None]
    assert list(trace(figure, "shown above").y) == [95.0]
    band, line = figure.layout.shapes
    assert line.y0 == 98.0
    assert (band.y0, band.y1) == pytest.approx(tuple(100 * end for end in FULL.evaluation.interval))
    assert not any(found.name == "ofq, mixed" for found in figure.data)
    assert post.marker.symbol != trained.marker.symbol
    left, right = figure.layout.xaxis.range
    assert left < min(*post.x, *trained.x) <= max(*post.x, *trained.x) < right


def test_without_labels_the_figure_shows_agreement():
    rows = [replace(found, evaluation=found.evaluation and evaluation(None)) for found in ROWS]
    assert list(trace(training_table.setting_figure(rows, AGREEMENT), "ofq, uniform").y) == [75.0]
    assert "top-1 (%)" not in training_table.setting_frame(rows)


def test_words_say_whether_the_intervals_tell_training_from_post_training():
    assert "95.0\u00a0%" in training_table.setting_words(ROWS, TOP1)
    assert "Training gains more than chance explains" in training_table.setting_words(ROWS, TOP1)
    near = [FULL, POST, replace(TRAINED, evaluation=evaluation(22))]
    assert "intervals overlap" in training_table.setting_words(near, TOP1)
    worse = [FULL, replace(POST, evaluation=evaluation(190)), replace(TRAINED, evaluation=evaluation(100))]
    assert "Training loses" in training_table.setting_words(worse, TOP1)
    assert training_table.setting_words([FULL, POST, UNFINISHED], TOP1) == ""


def test_uniform_means_the_layers_between_the_first_and_the_last():
    kept = {"patch_embed.proj": (8, 8), "head": (8, 8)}
    bits = {layer.name: (2, 2) for layer in LAYERS} | kept
    assert training_table.is_uniform(LAYERS, bits)
    mixed = bits | {"blocks.0.mlp.fc1": (3, 3)}
    assert not training_table.is_uniform(LAYERS, mixed)
    assert training_table.bits_words(LAYERS, mixed) == "Layers by bits: 1 at 2, 1 at 3."
