"""The stages of a study that score layers for other strategies: Hessian traces, loss changes, pairs, step sizes."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from mixqvit.criteria.hessian import TraceBatch, hawq_harms, hessian_trace_steps, mean_traces
from mixqvit.criteria.indicators import INDICATOR_PASSES, Indicators, IndicatorState, indicator_harms, indicator_steps
from mixqvit.criteria.loss_change import LossChangeBatch, loss_change_steps, mean_loss_changes
from mixqvit.criteria.pairwise import Pair, all_pairs, block_pairs, pair_cost
from mixqvit.criteria.perturbation import Perturbation, squared_perturbations
from mixqvit.network.bits import BIT_WIDTHS, FULL_PRECISION, Bits, possible_bits, tied_bits
from mixqvit.network.layers import Layer
from mixqvit.progress import Progress
from mixqvit.study.claims import once
from mixqvit.study.sensitivity import SensitivityStages
from mixqvit.study.workers import pair_worker

__all__ = ["CriteriaStages"]

ALL_PAIRS_MACS = 200 * 10**6
"""Models of no more multiply-accumulates per image get all pairs of layers at all bit-widths."""

FEW_WIDTHS = (2, 3, 4, 6, 8)
"""Bit-widths of the pairs of larger models, within a block each."""

PAIR_IMAGES = 8
"""Calibration images that pairs are measured on."""

_PASSES, _STATE = "passes", "state"

PairHarms = dict[Pair, dict[tuple[Bits, Bits], float]]


class CriteriaStages(SensitivityStages):
    """What HAWQ-V2, MPQCO, CLADO and LIMPQ know about the layers."""

    def hessian_steps(self) -> Iterator[Progress]:
        """Estimate the mean Hessian traces and measure the perturbations; the last result is the harm by bits."""
        images, total = self.analysis_images, len(self.analysis_images)
        trace_key, square_key = self._hessian_keys

        def traces() -> Progress:
            done = sum(row["images"] for row in self.store.rows(trace_key).values())
            return Progress(done, total, "Hessian traces")

        def run_traces() -> Iterator[Progress]:
            done, finished = traces().done, {int(item) for item in self.store.items(trace_key)}
            for batch in hessian_trace_steps(self.precise_graph, images.pixels, images.labels, finished=finished):
                self.store.put(trace_key, str(batch.start), _trace_row(batch))
                done += batch.images
                yield Progress(done, total, f"Hessian traces of {done} of {total} images")

        def squares() -> Progress:
            return Progress(len(self.store.items(square_key)), len(self.layers), "perturbations")

        def run_squares() -> Iterator[Progress]:
            saved = set(self.store.items(square_key))
            steps = squared_perturbations(self.calibration(), images.pixels, finished=saved)
            for done, found in enumerate(steps, len(saved) + 1):
                self.store.put(square_key, found.layer, _perturbation_row(found))
                yield Progress(done, len(self.layers), f"perturbation of {found.layer}")

        if "hessian" not in self.memory:
            yield from once(self.store, trace_key, traces, run_traces)
            yield from self._calibrated_steps()
            yield from once(self.store, square_key, squares, run_squares)
            batches = [_trace_batch(int(start), row) for start, row in self.store.rows(trace_key).items()]
            rows = self.store.rows(square_key)
            found = [_perturbation(layer.name, rows[layer.name]) for layer in self.layers]
            self.memory["hessian"] = hawq_harms(mean_traces(batches), found)
        yield Progress(total, total, "Hessian", self.memory["hessian"])

    def loss_change_steps(self, tied: bool = True) -> Iterator[Progress]:
        """Predict the loss change of each layer from calibration gradients; the last result is the harm by bits.

        Args:
            tied: Whether both operands share their bits; otherwise weights and activations are scored alone, the other
                one in full precision.
        """
        images, total = self.analysis_images, len(self.analysis_images)
        key = self._loss_change_key(tied)

        def progress() -> Progress:
            return Progress(sum(row["images"] for row in self.store.rows(key).values()), total, "loss changes")

        def run() -> Iterator[Progress]:
            done, finished = progress().done, {int(item) for item in self.store.items(key)}
            bits_of = tied_bits if tied else _operands_alone
            for batch in loss_change_steps(self.calibration(), images.pixels, bits_of, finished=finished):
                harms = {layer: _listed(row) for layer, row in batch.harms.items()}
                self.store.put(key, str(batch.start), {"images": batch.images, "harms": harms})
                done += batch.images
                yield Progress(done, total, f"loss changes of {done} of {total} images")

        if ("loss change", tied) not in self.memory:
            yield from self._calibrated_steps()
            yield from once(self.store, key, progress, run)
            batches = [
                LossChangeBatch(
                    int(start),
                    row["images"],
                    {layer: {(w, a): harm for w, a, harm in harms} for layer, harms in row["harms"].items()},
                )
                for start, row in self.store.rows(key).items()
            ]
            self.memory["loss change", tied] = mean_loss_changes(batches)
        yield Progress(total, total, "loss changes", self.memory["loss change", tied])

    def pair_steps(self) -> Iterator[Progress]:
        """Measure what pairs of layers cost together beyond what each costs alone; the last result is all terms."""
        pairs, widths, count = self._pair_plan()
        key = self._pair_key

        def progress() -> Progress:
            return Progress(len(self.store.items(key)), len(pairs), "pairs")

        def run() -> Iterator[Progress]:
            finished = {tuple(item.split("|")) for item in self.store.items(key)}
            missing = [pair for pair in pairs if pair not in finished]
            partners: dict[str, list[str]] = {}
            for first, second in missing:
                partners.setdefault(first, []).append(second)
            pixels = self.sent(self.calibration_images.subset(count).pixels)
            work = partial(pair_worker, self._worker_calibration(), pixels, missing, widths)
            tasks = [(layer.name, partners[layer.name]) for layer in self.layers if layer.name in partners]
            for done, terms in enumerate(self.engine.results(work, tasks), len(finished) + 1):
                values = [[*first, *second, value] for (first, second), value in terms.values.items()]
                self.store.put(key, f"{terms.first}|{terms.second}", values)
                yield Progress(done, len(pairs), f"{terms.first} with {terms.second}")

        if "pairs" not in self.memory:
            yield from self._calibrated_steps()
            yield from once(self.store, key, progress, run)
            self.memory["pairs"] = {
                tuple(item.split("|")): {((a, b), (c, d)): value for a, b, c, d, value in values}
                for item, values in self.store.rows(key).items()
            }
        yield Progress(len(pairs), len(pairs), "pairs", self.memory["pairs"])

    def indicator_steps(self) -> Iterator[Progress]:
        """Train the step sizes of all operands at all bit-widths; the last result is s_a + α · s_w by bits.

        Every pass over the images is saved. What the next one goes on from is kept until the last is done.
        """
        key = self._indicator_key
        state_key = f"{key}-{_STATE}"

        def progress() -> Progress:
            return Progress(self.store.rows(key).get(_PASSES, 0), INDICATOR_PASSES, "importance indicators")

        def run() -> Iterator[Progress]:
            saved = self.store.tensors(state_key, _STATE)
            begun = IndicatorState(int(saved[1][_PASSES]), {}, saved[0]) if saved and saved[0] else None
            for state in indicator_steps(self.device_graph, self.analysis_images.pixels, state=begun):
                for layer, found in state.indicators.items():
                    self.store.put(key, layer, _indicator_row(found))
                is_last = state.passes == INDICATOR_PASSES
                if not is_last:
                    self.store.put_tensors(state_key, _STATE, state.tensors, {_PASSES: str(state.passes)})
                self.store.put(key, _PASSES, state.passes)
                if is_last:
                    self.store.put_tensors(state_key, _STATE, {})
                words = f"importance indicators, pass {state.passes} of {INDICATOR_PASSES}"
                yield Progress(state.passes, INDICATOR_PASSES, words)

        if "indicators" not in self.memory:
            yield from once(self.store, key, progress, run)
            rows = self.store.rows(key)
            found = {layer.name: _indicators(rows[layer.name]) for layer in self.layers}
            self.memory["indicators"] = indicator_harms(found)
        yield Progress(INDICATOR_PASSES, INDICATOR_PASSES, "importance indicators", self.memory["indicators"])

    def pair_estimate(self) -> float:
        """Return about how many seconds measuring the missing pairs takes here, from a timed run of a few images."""
        pairs, widths, count = self._pair_plan()
        saved = set(self.store.items(self._pair_key))
        pairs = [pair for pair in pairs if "|".join(pair) not in saved]
        if not pairs:
            return 0.0
        return self.seconds_per_image() * pair_cost(self.graph, pairs, len(widths), count)

    @property
    def pair_widths(self) -> tuple[int, ...]:
        """Bit-widths that pairs are measured at, and so those that `clado` chooses among."""
        return self._pair_plan()[1]

    def _pair_plan(self) -> tuple[tuple[Pair, ...], tuple[int, ...], int]:
        """Return which pairs are measured at which bit-widths on how many images."""
        count = min(PAIR_IMAGES, len(self.calibration_images))
        if self.graph.macs <= ALL_PAIRS_MACS:
            return all_pairs(self.layers), BIT_WIDTHS, count
        return block_pairs(self.layers), FEW_WIDTHS, count

    @property
    def _hessian_keys(self) -> tuple[str, str]:
        count = len(self.analysis_images)
        return self._criteria_key("hessian traces", count), self._criteria_key("perturbations", count)

    def _loss_change_key(self, tied: bool) -> str:
        return self._criteria_key("loss changes", len(self.analysis_images), tied)

    @property
    def _indicator_key(self) -> str:
        return self._key("indicators", len(self.analysis_images))

    @property
    def _pair_key(self) -> str:
        _, widths, count = self._pair_plan()
        return self._criteria_key("pairs", count, list(widths))

    def _criteria_key(self, *parts: Any) -> str:
        return self._key("criteria", self.settings.recipe, self.settings.calibration_images, *parts)


def _operands_alone(layer: Layer) -> tuple[Bits, ...]:
    """Return bits with only the weights or only the activations quantized."""
    if layer.is_matmul:
        return tied_bits(layer)
    inputs = sorted({bits for _, bits in possible_bits(layer, tied=False)})
    return (*((bits, FULL_PRECISION) for bits in BIT_WIDTHS), *((FULL_PRECISION, bits) for bits in inputs))


def _listed(row: Mapping[Bits, float]) -> list[list[float]]:
    return [[*bits, harm] for bits, harm in row.items()]


def _trace_row(batch: TraceBatch) -> dict[str, Any]:
    return {"images": batch.images, "weights": dict(batch.weights), "operands": dict(batch.operands)}


def _trace_batch(start: int, row: Mapping[str, Any]) -> TraceBatch:
    weights = {name: tuple(values) for name, values in row["weights"].items()}
    operands = {name: tuple(tuple(values) for values in found) for name, found in row["operands"].items()}
    return TraceBatch(start, row["images"], weights, operands)


def _perturbation_row(found: Perturbation) -> dict[str, Any]:
    return {
        "weight": found.weight and list(found.weight.items()),
        "operands": [list(squares.items()) for squares in found.operands],
    }


def _perturbation(layer: str, row: Mapping[str, Any]) -> Perturbation:
    return Perturbation(layer, row["weight"] and dict(row["weight"]), tuple(dict(found) for found in row["operands"]))


def _indicator_row(found: Indicators) -> dict[str, Any]:
    return {
        "weight": found.weight and list(found.weight.items()),
        "operands": [list(steps.items()) for steps in found.operands],
    }


def _indicators(row: Mapping[str, Any]) -> Indicators:
    return Indicators(row["weight"] and dict(row["weight"]), tuple(dict(steps) for steps in row["operands"]))
