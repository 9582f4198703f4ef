"""What the help of commands explains is what the program writes and takes."""

import pytest

from mixqvit.allocation.budget import Allocation
from mixqvit.allocation.costs import Cost
from mixqvit.commands.explanations import EXPLANATIONS, WIDTH
from mixqvit.commands.parser import parser
from mixqvit.files.allocation_document import allocation_document
from mixqvit.files.export.formats import FORMATS
from mixqvit.study.settings import Settings
from mixqvit.training.settings import TRAINING_METHODS


def help_of(name: str) -> str:
    """Return a command's help without its line breaks."""
    (choices,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    return " ".join(choices[name].format_help().split())


@pytest.mark.parametrize("name", EXPLANATIONS)
def test_the_help_of_a_command_says_what_is_explained(name):
    assert " ".join(EXPLANATIONS[name].split()) in help_of(name)
    assert max(map(len, EXPLANATIONS[name].splitlines())) <= WIDTH + 5


def test_every_key_of_an_allocation_file_is_explained():
    words = set(help_of("allocate").replace(",", " ").split())
    allocation = Allocation({"head": (4, 4)}, 0.1, Cost(1, 1, 1, 1, 1, 4.0))
    document = allocation_document("digits_vit", Settings(), allocation)
    assert set(document) <= words


def test_every_format_and_every_training_recipe_is_explained():
    assert all(f"{one.name} {one.description}" in help_of("export") for one in FORMATS.values())
    assert all(f"{name} {words}" in help_of("train") for name, words in TRAINING_METHODS.items())
