"""Commands on small studies."""

import pytest

from mixqvit.stages.store import Store
from tests.small import SMALL


@pytest.fixture(scope="module", autouse=True)
def small_studies(first_results):
    """Fewer images than a user's: what the commands print and write does not depend on it."""
    first_results.put("digits_vit", Store())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixqvit.files.open_studies.Settings", SMALL)
        yield
