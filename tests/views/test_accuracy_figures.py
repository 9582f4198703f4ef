"""What stands for accuracy is decided in one place."""

import pytest

from mixqvit.tasks.evaluation import AGREEMENT, TOP1
from mixqvit.views import overview
from mixqvit.views.accuracy import accuracy_columns
from mixqvit.views.frontier import MEASURES, measures
from tests.views.allocations import evaluation


@pytest.mark.parametrize(("correct", "expected", "value"), [(180, TOP1, 0.9), (None, AGREEMENT, 0.75)])
def test_labels_decide_what_it_is(correct, expected, value):
    found = evaluation(correct)
    assert found.accuracy is expected
    assert expected.value(found) == value
    assert expected.interval(found)[0] < value < expected.interval(found)[1]
    assert overview.accuracy(found)[0] == f"{100 * value:.1f}\u00a0%"


def test_the_interval_in_a_table_is_that_of_what_stands_first():
    labelled, bare = accuracy_columns(evaluation(180)), accuracy_columns(evaluation(None))
    assert list(labelled) == ["top-1 (%)", "from (%)", "to (%)", "agreement (%)"]
    assert list(bare) == ["agreement (%)", "from (%)", "to (%)"]
    assert labelled["from (%)"] == pytest.approx(100 * evaluation(180).interval[0])
    assert bare["from (%)"] == pytest.approx(100 * evaluation(None).agreement_interval[0])


def test_top1_is_offered_where_there_are_labels():
    assert measures(has_labels=True) == list(MEASURES)
    assert measures(has_labels=False) == ["Agreement with full precision", "KL divergence"]
