"""The README is short, and what it tells people to type and to open is there."""

import re
import shlex
from pathlib import Path

import pytest

from mixqvit.commands.parser import parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()
COMMANDS = re.findall(r"^    python -m mixqvit (.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_is_one_that_the_parser_takes(command):
    parser().parse_args(shlex.split(command.partition(" | ")[0], comments=True))


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    assert all((ROOT / link).is_file() for link in links)


def test_it_is_read_in_one_go():
    assert len(README.splitlines()) <= 250


def test_every_benchmark_is_among_the_results_and_every_section_is_listed():
    scripts = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py")}
    assert scripts == set(re.findall(r"python -m tests\.benchmarks\.(\w+)", RESULTS))
    sections = re.findall(r"^## (.*)$", RESULTS, re.MULTILINE)
    assert sections == re.findall(r"^- \[(.*)\]\(#", RESULTS, re.MULTILINE)
