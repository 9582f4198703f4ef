from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixqvit.errors import ImageError
from mixqvit.images.sampling import Sampling, draw_calibration, draw_evaluation, in_order

# Names and labels of a source: per class, how many images.
SOURCES = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def source(sizes: list[int]) -> tuple[list[str], list[int]]:
    pairs = [(f"{label:03d}/{number:03d}", label) for label, size in enumerate(sizes) for number in range(size)]
    return [name for name, _ in pairs], [label for _, label in pairs]


def sample(names: list[str], labels: list[int | None], wanted: int, seed: int) -> tuple[list[str], list[str], str]:
    """The names that calibrate and evaluate."""
    order = in_order(names, labels, seed)
    calibration = draw_calibration(labels, order).chosen
    others = [position for position in order if position not in set(calibration)]
    if not others:
        return [names[position] for position in calibration], [], ""
    drawn = draw_evaluation(names, labels, others, wanted, seed)
    return [names[position] for position in calibration], [names[position] for position in drawn.chosen], drawn.how


@settings(deadline=None, max_examples=60)
@given(SOURCES, st.integers(1, 400), st.integers(0, 5), st.randoms(use_true_random=False))
def test_samples_are_disjoint_stratified_and_independent_of_the_listing(sizes, wanted, seed, random) -> None:
    names, labels = source(sizes)
    calibration, evaluation, _ = sample(names, labels, wanted, seed)
    assert not set(calibration) & set(evaluation)
    assert len(set(evaluation)) == len(evaluation) == min(wanted, len(names) - len(calibration))
    candidates = (len(names) + 9) // 10
    expected = min(128, candidates)
    assert len(calibration) == (expected if expected < 32 else expected // 32 * 32)

    shuffled = list(zip(names, labels, strict=True))
    random.shuffle(shuffled)
    assert sample([name for name, _ in shuffled], [label for _, label in shuffled], wanted, seed)[:2] == (
        calibration,
        evaluation,
    )

    taken = Counter(name[:3] for name in evaluation)
    left = Counter(name[:3] for name in names)
    left.subtract(Counter(name[:3] for name in calibration))
    if len(evaluation) == wanted:
        most = max(taken.values())
        for label, there in left.items():
            assert taken[label] >= min(there, most - 1), "only a class that has no more may give fewer"


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 500), st.integers(1, 300), st.integers(0, 5), st.randoms(use_true_random=False))
def test_unlabelled_samples_are_disjoint_and_independent_of_the_listing(count, wanted, seed, random) -> None:
    names = [f"{number:04d}.jpg" for number in range(count)]
    calibration, evaluation, _ = sample(names, [None] * count, wanted, seed)
    assert not set(calibration) & set(evaluation)
    assert len(evaluation) == min(wanted, count - len(calibration))
    random.shuffle(names)
    assert sample(names, [None] * count, wanted, seed)[:2] == (calibration, evaluation)


def test_seed_zero_takes_every_tenth_in_turns_and_all_others() -> None:
    names, labels = source([11, 11, 11])
    calibration, evaluation, how = sample(names, labels, 1000, 0)
    assert calibration == ["000/000", "001/009", "002/008", "000/010"]
    assert evaluation[:4] == ["000/001", "001/000", "002/000", "000/002"]
    assert len(evaluation) == 29
    assert how == "all 29 images that are not for calibration"


def test_another_seed_is_another_choice_by_the_same_rule() -> None:
    names, labels = source([40] * 8)
    results = {seed: sample(names, labels, 80, seed) for seed in range(4)}
    assert len({tuple(sorted(calibration)) for calibration, _, _ in results.values()}) == 4
    assert len({tuple(sorted(evaluation)) for _, evaluation, _ in results.values()}) == 4
    for calibration, evaluation, _ in results.values():
        assert Counter(name[:3] for name in calibration).total() == 32
        assert set(Counter(name[:3] for name in calibration).values()) == {4}
        assert set(Counter(name[:3] for name in evaluation).values()) == {10}


def test_the_classes_that_give_one_more_are_drawn_by_the_seed() -> None:
    names, labels = source([30] * 10)
    richer = set()
    for seed in range(6):
        counts = Counter(name[:3] for name in sample(names, labels, 43, seed)[1])
        assert sorted(counts.values()) == [4] * 7 + [5] * 3
        richer.add(frozenset(label for label, count in counts.items() if count == 5))
    assert len(richer) > 2


def test_small_classes_give_what_they_have() -> None:
    names, labels = source([3, 50, 50])
    counts = Counter(name[:3] for name in sample(names, labels, 42, 0)[1])
    assert counts["000"] == 2  # its first one calibrates
    assert counts["001"] == counts["002"] == 20


@pytest.mark.parametrize(
    ("labels", "why"), [(list(range(50)), "one image a class"), ([None] * 50, "they have no labels")]
)
def test_a_random_sample_says_so(labels: list[int | None], why: str) -> None:
    names = [f"{number:02d}" for number in range(50)]
    _, first, how = sample(names, labels, 20, 0)
    assert how == f"20 of 45 images that are not for calibration, at random ({why}), seed 0"
    assert set(first) != set(sample(names, labels, 20, 1)[1])


def test_calibration_is_spread_over_many_classes() -> None:
    """Otherwise it would be the first classes alone: of the sorted ImageNet fishes, birds and snakes."""
    names, labels = source([50] * 1000)
    calibration = sample(names, labels, 1000, 0)[0]
    classes = [int(name[:3]) if name[3] == "/" else int(name[:4]) for name in calibration]
    assert len(set(classes)) == len(classes) == 128
    assert max(classes) > 850


@pytest.mark.parametrize("arguments", [{"evaluation": 0}, {"evaluation": -3}, {"seed": -1}, {"seed": 0.5}])
def test_impossible_samplings_say_so(arguments: dict) -> None:
    with pytest.raises(ImageError, match=r"at least one image|whole number"):
        Sampling(**arguments)
