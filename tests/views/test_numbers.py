"""How numbers are written."""

from math import nan

import pytest

from mixqvit.views import numbers


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1_234_000, "1.23 M"), (5e9, "5 G")]
)
def test_counts_are_short(amount, text):
    assert numbers.amount(amount) == text


def test_one_thing_has_no_plural():
    assert [numbers.counted(count, "epoch") for count in (1, 2, 1000)] == ["1 epoch", "2 epochs", "1,000 epochs"]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min")])
def test_an_estimated_time_has_no_more_digits_than_it_is_good_for(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.2 s"), (90, "1.5 min")])
def test_a_measured_time(seconds, text):
    assert numbers.computing_time(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0.00 MB"), (99_999, "100.0 kB"), (1_234_567, "1.23 MB")])
def test_sizes_are_decimal(size, text):
    assert numbers.megabytes(size) == text


@pytest.mark.parametrize(("error", "text"), [(2.5, "250 %"), (0.012345, "1.23 %"), (0.0, "0 %"), (1e-7, "1.0e-05 %")])
def test_relative_errors_have_three_digits(error, text):
    assert numbers.relative_error(error) == text


def test_what_means_nothing_is_a_dash():
    written = (numbers.percent(nan), numbers.interval_text((nan, nan)), numbers.nats(nan))
    assert set(written) == {numbers.NOTHING}
    assert numbers.interval_text((0.5, 0.75)) == "50.0 to 75.0\u00a0%"
