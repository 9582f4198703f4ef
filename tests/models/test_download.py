"""Downloads from a server on this machine that answers as the hub does."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from mixqvit.errors import ModelError
from mixqvit.models.loading import load_model, load_model_steps

COMMIT = "a" * 40
REPOSITORY = "timm/test_vit.r160_in1k"


@dataclass
class Hub:
    """What the server has and how it behaves.

    Attributes:
        files: Content by path inside the repository.
        status: Answered instead of a file, with `error` as the hub's code for it.
        breaks_after: The connection ends after so many bytes of a file; None for never.
        pause: Seconds between the pieces of a file.
        requests: What was asked for.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error: str = ""
    breaks_after: int | None = None
    pause: float = 0.0
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_content=False)

        def do_GET(self) -> None:
            self.answer(with_content=True)

        def answer(self, with_content: bool) -> None:
            state.requests.append(f"{self.command} {self.path}")
            prefix = f"/{REPOSITORY}/resolve/main/"
            name = self.path.partition("?")[0].removeprefix(prefix)
            if self.path == "/":
                return self.refuse(200, "")
            if state.status != 200:
                return self.refuse(state.status, state.error)
            if not self.path.startswith(prefix) or name not in state.files:
                return self.refuse(404, "EntryNotFound" if self.path.startswith(prefix) else "RepoNotFound")
            content, start = state.files[name], 0
            if "Range" in self.headers:
                start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:x}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if with_content:
                self.pieces(content, start)

        def pieces(self, content: bytes, start: int) -> None:
            end = len(content) if state.breaks_after is None else min(state.breaks_after, len(content))
            for position in range(start, end, 100_000):
                self.wfile.write(content[position : min(position + 100_000, end)])
                self.wfile.flush()
                time.sleep(state.pause)
            if end < len(content):
                self.close_connection = True
                self.connection.shutdown(1)

        def refuse(self, status: int, error: str) -> None:
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
                self.send_header("X-Error-Message", error)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in ("constants", "file_download"):  # older versions keep a copy
        monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def original() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit")


@pytest.fixture(scope="module")
def weights(original: torch.nn.Module) -> bytes:
    return safetensors.torch.save(original.state_dict())


def test_download_reports_bytes_and_ends_with_the_model(hub, weights, original):
    hub.files, hub.pause = {"model.safetensors": weights}, 0.1
    steps = list(load_model_steps("test_vit"))
    model = steps[-1].result
    assert torch.equal(model.module.head.weight, original.head.weight)
    assert all(step.result is None for step in steps[:-1])
    counts = [step.done for step in steps if step.doing.startswith("Downloading")]
    assert counts == sorted(set(counts))
    assert any(0 < count < len(weights) for count in counts), "bytes are seen while they arrive"
    assert {step.total for step in steps[1:]} == {len(weights)}
    assert steps[-1].done == len(weights)
    assert model.preprocessing.input_size == (3, 160, 160)
    assert model.label_names[0] == "n01440764"


def test_second_time_nothing_is_asked(hub, weights):
    hub.files = {"model.safetensors": weights}
    first = load_model("test_vit")
    hub.requests.clear()
    assert load_model("test_vit").fingerprint == first.fingerprint
    assert hub.requests == []


def test_older_repository_with_pickled_weights(hub, original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "weights.bin")
    hub.files = {"pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()}
    assert torch.equal(load_model("test_vit").module.head.weight, original.head.weight)


@pytest.mark.skipif(version("huggingface_hub").startswith("0."), reason="only newer clients go on by themselves")
def test_download_that_breaks_off_goes_on_where_it_was(hub, weights, original):
    hub.files, hub.breaks_after, hub.pause = {"model.safetensors": weights}, len(weights) // 2, 0.02
    steps = load_model_steps("test_vit")
    for _ in steps:
        if any(request.startswith("GET") for request in hub.requests):
            hub.breaks_after = None
            break
    *_, last = steps
    assert torch.equal(last.result.module.head.weight, original.head.weight)


def test_download_that_breaks_off_for_good(hub, weights, monkeypatch):
    hub.files, hub.breaks_after = {"model.safetensors": weights}, len(weights) // 2
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(ModelError, match=r"download of test_vit broke off .*as its checkpoint"):
        load_model("test_vit")
    hub.breaks_after = None
    assert load_model("test_vit").name == "test_vit"


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, "RepoNotFound", "no repository timm/test_vit.r160_in1k"),
        (404, "RepoNotFound", "no repository timm/test_vit.r160_in1k"),
        (401, "GatedRepo", "accept their licence"),
        (403, "GatedRepo", "accept their licence"),
        (403, "", "status 403"),
        (500, "", "status 500"),
    ],
)
def test_refusals_of_the_hub(hub, status, error, message):
    hub.status, hub.error = status, error
    with pytest.raises(ModelError, match=message) as caught:
        load_model("test_vit")
    assert "\n" not in str(caught.value)


def test_repository_without_weights(hub):
    with pytest.raises(ModelError, match=r"has no weights of test_vit \(model.safetensors or pytorch_model.bin\)"):
        load_model("test_vit")


@pytest.mark.parametrize("content", [b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\0\0"])
def test_what_was_downloaded_is_no_checkpoint(hub, content):
    hub.files = {"model.safetensors": content}
    with pytest.raises(ModelError, match=r"web page|git-lfs pointer|damaged"):
        load_model("test_vit")


def test_downloaded_values_that_are_not_finite(hub, original):
    state = {**original.state_dict(), "norm.bias": torch.full_like(original.norm.bias, float("nan"))}
    hub.files = {"model.safetensors": safetensors.torch.save(state)}
    with pytest.raises(ModelError, match=r"norm.bias that are not finite"):
        load_model("test_vit")


def test_features_without_a_classifier_are_refused_before_they_are_downloaded(hub):
    with pytest.raises(ModelError, match="no classifier head"):
        load_model("vit_small_patch14_dinov2.lvd142m")
    assert hub.requests == []
