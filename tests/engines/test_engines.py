"""Engines: order, killed workers, refusals. Real processes, real clusters."""

import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from mixqvit.engines.choice import EngineChoice, find_engine
from mixqvit.engines.in_order import InOrder
from mixqvit.engines.processes import Processes
from mixqvit.engines.ray_cluster import RayCluster
from mixqvit.engines.this_process import ThisProcess
from mixqvit.errors import BitWidthError, EngineError


def squares(log: Path, fatal: int | None):
    """Build a worker that writes down every task, and kills its own process the first time it gets `fatal`."""

    def work(number: int):
        with log.open("a") as file:
            file.write(f"{number}\n")
        if number == fatal and not (log.parent / "killed").exists():
            (log.parent / "killed").touch()
            time.sleep(0.5)  # what the other worker has finished is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        yield number * number
        yield -number

    return work


def always_dying():
    os.kill(os.getpid(), signal.SIGKILL)


def refusing():
    def work(number: int):
        raise BitWidthError(f"{number} bits are not possible.")

    return work


ENGINES = [
    pytest.param(ThisProcess(), id="this-process"),
    pytest.param(Processes(2), id="processes"),
    pytest.param(RayCluster(workers=2), id="ray", marks=pytest.mark.slow),
]


def skip_without_ray(engine) -> None:
    if isinstance(engine, RayCluster):
        pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_piece_of_every_task_comes_once(engine, tmp_path):
    skip_without_ray(engine)
    found = list(engine.results(partial(squares, tmp_path / "log", None), range(7)))
    assert sorted(found) == sorted([*(number * number for number in range(7)), *(-number for number in range(7))])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_a_killed_worker_costs_nothing_that_was_finished(engine, tmp_path):
    skip_without_ray(engine)
    log = tmp_path / "log"
    yielded_before_the_kill = []
    found = []
    for piece in engine.results(partial(squares, log, 3), range(8)):
        found.append(piece)
        if not (tmp_path / "killed").exists():
            yielded_before_the_kill.append(piece)
    assert (tmp_path / "killed").exists()
    assert sorted(found) == sorted([*(number * number for number in range(8)), *(-number for number in range(8))])
    runs = [int(line) for line in log.read_text().split()]
    assert runs.count(3) == 2
    for number in range(8):
        if -number in yielded_before_the_kill:
            assert runs.count(number) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_work_raises_arrives_as_it_is(engine):
    skip_without_ray(engine)
    with pytest.raises(BitWidthError, match="5 bits are not possible"):
        list(engine.results(refusing, [5]))


@pytest.mark.slow
def test_workers_that_die_at_once_end_in_a_message():
    with pytest.raises(EngineError, match="fewer workers"):
        list(Processes(1).results(always_dying, [1]))


def test_stopping_early_leaves_no_process_behind(tmp_path):
    steps = Processes(2).results(partial(squares, tmp_path / "log", None), range(50))
    next(steps)
    steps.close()
    deadline = time.monotonic() + 20
    while workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers()


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "popen_loky" in " ".join(child.cmdline())]


def test_workers_do_not_run_the_main_file_again(tmp_path, monkeypatch):
    """The main file of a dashboard is a page, which cannot run in a worker."""
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "page.py")
    Path(main.__file__).write_text("raise SystemExit('a page ran in a worker')")
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert sorted(Processes(1).results(partial(squares, tmp_path / "log", None), [2])) == [-2, 4]


def test_a_cluster_that_is_not_there_is_named_within_ten_seconds():
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match="There is no Ray cluster"):
        list(RayCluster(address).results(refusing, [1]))


@pytest.mark.slow
def test_a_server_that_is_no_cluster_is_told_apart():
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(EngineError, match="Something else answers there"):
            list(RayCluster(f"127.0.0.1:{other.getsockname()[1]}").results(refusing, [1]))


@pytest.mark.parametrize(
    "choice",
    [
        EngineChoice("cloud"),
        EngineChoice("processes", 0),
        EngineChoice("ray", 0),
        EngineChoice("this-process", 2),
        EngineChoice("processes", 2, "10.0.0.1:6379"),
    ],
)
def test_choices_that_are_not_possible_are_refused(choice):
    with pytest.raises(EngineError):
        find_engine(choice)


def test_addresses_that_are_none_are_refused():
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(EngineError, match="HOST:PORT"):
        list(RayCluster("cluster").results(refusing, [1]))


def test_a_walk_goes_on_for_later_layers_and_begins_anew_for_earlier_ones():
    starts = []

    def start(wanted):
        starts.append(None)
        for layer in ("a", "b", "c"):
            for bits in wanted(layer):
                yield layer, bits

    walk = InOrder(start, {"a": 0, "b": 1, "c": 2})
    assert list(walk(("a", [2, 3]))) == [("a", 2), ("a", 3)]
    assert list(walk(("c", [4]))) == [("c", 4)]
    assert len(starts) == 1
    assert list(walk(("b", [4]))) == [("b", 4)]
    assert len(starts) == 2
