"""What the command line teaches, how it reports progress, and where sweeps run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mixqvit.commands import NOBODY_READS, main
from mixqvit.commands.parser import BAD_INPUT, parser
from mixqvit.commands.studies import finish
from mixqvit.engines.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


def commands():
    (choices,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    return choices


@pytest.mark.parametrize("name", list(commands()))
def test_the_help_of_every_command_has_an_example_that_its_parser_takes(name):
    _, _, examples = commands()[name].format_help().partition("examples:\n")
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert lines
    for line in lines:
        line = line.partition(" | ")[0]
        assert line.startswith(f"python -m mixqvit {name}")
        parser().parse_args(line.replace('"my study"', "study").split()[3:])


def test_the_help_teaches_the_way_from_a_model_to_a_report_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes: 0 done, 2" in text
    steps = [line.split() for line in text.splitlines() if line.startswith("  python -m mixqvit ")]
    assert [step[3] for step in steps] == ["analyze", "allocate", "evaluate", "pack", "export", "report"]
    for step in steps:
        parser().parse_args(step[3:])


def test_progress_is_plain_lines_where_nobody_sees_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("mixqvit.commands.studies.SECONDS_BETWEEN_LINES", 0)
    assert finish(Progress(done, 2, f"piece {done}", done) for done in (1, 2)) == 2
    assert capsys.readouterr().err == "1 of 2: piece 1\n2 of 2: piece 2\n"


def test_a_reader_that_goes_away_gets_no_traceback():
    command = f"{sys.executable} -m mixqvit models --json"
    shell = f'{command} | true; echo "${{PIPESTATUS[0]}}"'
    finished = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert finished.stderr == ""
    assert finished.stdout.strip() in (str(NOBODY_READS), "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "This process is one worker"),
        (["--engine", "processes", "--workers", "0"], "0 worker processes are not possible"),
        (["--engine", "processes", "--address", "10.0.0.1:6379"], "An address goes with --engine ray"),
    ],
)
def test_engines_that_are_not_possible_are_bad_input(capfd, options, message):
    assert main(["layers", "--model", "digits_vit", *options]) == BAD_INPUT
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.slow
def test_a_sweep_in_processes_prints_the_same_document(capfd):
    documents = []
    for options in ([], ["--engine", "processes", "--workers", "2"]):
        assert main(["sensitivity", "--model", "digits_vit", "--outliers", "2", "--json", *options]) == 0
        documents.append(json.loads(capfd.readouterr().out))
    assert documents[0] == documents[1]
