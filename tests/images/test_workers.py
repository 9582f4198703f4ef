import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mixqvit.errors import ImageError
from mixqvit.images import training_images, workers
from mixqvit.images.training_sources import load_training_images
from tests.images.archive_files import write_archive
from tests.images.files import ANIMALS, tiny_model
from tests.images.training_files import epoch_of, noise, noise_folder, same

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hammered() -> Iterator[None]:
    """Another thread draws from every global generator all the time, as a dashboard's may."""
    stop = threading.Event()

    def hammer() -> None:
        while not stop.wait(1e-4):
            random.random()
            torch.rand(10)
            np.random.rand(10)  # noqa: NPY002

    thread = threading.Thread(target=hammer)
    thread.start()
    yield
    stop.set()
    thread.join()


def reading_processes() -> set[psutil.Process]:
    """Return those that read images: other tests of this run may have left a browser, which comes and goes."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "mixqvit.images.worker_process" in process.cmdline():
                found.add(process)
    return found


def new_processes(before: set[psutil.Process]) -> set[psutil.Process]:
    return reading_processes() - before


@pytest.mark.slow
def test_the_same_bits_beside_other_threads_and_with_any_number_of_workers(
    tmp_path: Path, hammered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = load_training_images(noise_folder(tmp_path, 100), tiny_model(ANIMALS))
    (tmp_path / images.names[7]).write_bytes(b"damaged")
    expected = [epoch_of(images, epoch=epoch, batch=40) for epoch in (0, 1)]
    before = reading_processes()
    for count, epoch in ((1, 0), (2, 1), (2, 0)):
        monkeypatch.setattr(training_images, "worker_count", lambda images, processes, count=count: count)
        assert same(epoch_of(images, epoch=epoch, batch=40), expected[epoch])
        assert len(new_processes(before)) == 1, "one process waits for the next epoch"
    batches = images.batches(0, 0, 8)
    next(batches)
    assert len(new_processes(before)) == 3, "the one that waited, and its workers"
    batches.close()
    assert not new_processes(before), "the epoch was ended early"


def test_processes_that_wait_end_with_the_images_and_when_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_training_images(noise_folder(tmp_path, 3), tiny_model(ANIMALS))
    before = reading_processes()
    pool = workers.Workers(images.files)
    pool._idle.append(workers._Helper(images.files))
    assert len(new_processes(before)) == 1
    del pool
    assert not new_processes(before)

    monkeypatch.setattr(workers, "IDLE_SECONDS", 0.01)
    idle = [workers._Helper(images.files)]
    helper = idle[0]
    helper.end_when_idle(idle)
    helper._timer.join()
    assert not idle
    assert not new_processes(before)

    helper = workers._Helper(images.files)
    helper.end_when_idle([])  # it has been taken by another epoch
    helper._timer.join()
    assert len(new_processes(before)) == 1
    helper.end()
    assert not new_processes(before)


@pytest.mark.slow
def test_workers_that_are_killed_and_archives_that_vanish(tmp_path: Path) -> None:
    path = write_archive(tmp_path, {f"{n}.png": noise(n) for n in range(150)}, "tar")
    images = dataclasses.replace(load_training_images(path, tiny_model(3)), workers=2)
    before = reading_processes()
    batches = images.batches(0, 0, 8)
    next(batches)
    for process in new_processes(before):
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ImageError, match="ended early; was memory short"):
        list(batches)
    assert not new_processes(before)

    batches = images.batches(0, 0, 8)
    next(batches)
    path.unlink()
    for begun in (batches, dataclasses.replace(images, workers=0).batches(0, 0, 8)):
        with pytest.raises(ImageError, match=r"cannot be read any longer \(.*No such file.*images\.tar"):
            list(begun)
    assert not new_processes(before)


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert workers.worker_count(10_000, 1) == 8
    assert workers.worker_count(10_000, 4) == 4
    assert workers.worker_count(10_000, 100) == 1
    assert workers.worker_count(100, 1) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    assert workers.worker_count(10_000, 1) == 0


SCRIPT = """
import sys, time
print("run", flush=True)
import mixqvit.images.worker_process
from mixqvit.images import training_images
from mixqvit.images.training_sources import load_training_images
from tests.images.files import tiny_model
training_images.worker_count = lambda images, processes: 2
images = load_training_images(sys.argv[1], tiny_model(3))
batches = images.batches(0, 0, 4)
next(batches)
print({"streamlit", "plotly"} & set(sys.modules), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_program_leaves_no_process_and_its_script_runs_once(tmp_path: Path) -> None:
    """A script without the guard that `multiprocessing` asks for, as a dashboard's page is one."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    noise_folder(tmp_path / "images", 200)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, str(script), str(tmp_path / "images")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as program:
        said = [program.stdout.readline(), program.stdout.readline()]
        started = psutil.Process(program.pid).children(recursive=True)
        program.kill()
    assert said == ["run\n", "set()\n"], "what worker processes import holds no dashboard"
    assert len(started) == 3
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left
