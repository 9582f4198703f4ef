"""What is asked on the command line is the very request that Python, pages and files state."""

from hypothesis import given, settings

from mixqvit.allocation.quantities import QUANTITIES
from mixqvit.allocation.request import Request
from mixqvit.allocation.restrictions import RESTRICTIONS
from mixqvit.commands.parser import parser
from mixqvit.commands.studies import allocation_request
from mixqvit.network.bits import written_bits
from tests.allocation.problems import table
from tests.allocation.requests import requests

LAYERS, _ = table(4)
OPTIONS = dict(zip(RESTRICTIONS, ("--pin", "--at-least", "--at-most", "--allow"), strict=True))


def arguments(request: Request) -> list[str]:
    """Return the command line that states a request."""
    found = ["--strategy", request.strategy, "--gamma", repr(request.gamma), "--seed", str(request.seed)]
    for name, ceiling in request.budget.ceilings:
        one = QUANTITIES[name]
        found += [f"--{one.shown_name.replace('_', '-')}", repr(ceiling / one.unit)]
    for name, option in OPTIONS.items():
        for place, bits in getattr(request.restrictions, name).items():
            found += [option, f"{place}={written_bits(bits, ',' if name == 'allowed' else '/')}"]
    found += [] if request.budget.cap_bitops else ["--no-bitops-cap"]
    return found + ([] if request.tied else ["--independent"])


@settings(max_examples=25, deadline=None)
@given(request=requests(LAYERS))
def test_options_state_every_request(request):
    options = parser().parse_args(["allocate", "--model", "digits_vit", *arguments(request)])
    assert allocation_request(options) == request


def test_without_options_a_request_is_the_default_one():
    for command in ("allocate", "strategies", "frontier"):
        assert allocation_request(parser().parse_args([command, "--model", "digits_vit"])) == Request()
