import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from mixqvit.cache import default_folder
from mixqvit.errors import ImageError
from mixqvit.images.loading import load_image_sets
from mixqvit.images.sources import huggingface
from mixqvit.models import download
from tests.images.files import ANIMALS, class_folders, numbers, tiny_model
from tests.images.test_parquet import table, write


class Hub:
    """The hub's end of the network: repositories are local folders, one for each revision."""

    def __init__(self, revisions: dict[str, Path]) -> None:
        self.revisions = revisions
        self.downloaded: list[str] = []
        self.error: Exception | None = None

    def list_repo_tree(self, name: str, *, repo_type: str, revision: str, recursive: bool) -> list[RepoFile]:
        assert (name, repo_type, recursive) == ("zoo/animals", "dataset", True)
        if self.error is not None:
            raise self.error
        if revision not in self.revisions:
            raise _refusal(RevisionNotFoundError)
        folder = self.revisions[revision]
        return [
            RepoFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, oid="0")
            for path in folder.rglob("*")
            if path.is_file()
        ]

    def hf_hub_download(self, name: str, file: str, *, revision: str, cache_dir: Path, **options: object) -> str:
        assert cache_dir == default_folder() / "datasets", "everything is kept in the cache folder"
        assert not options["local_files_only"]
        self.downloaded.append(file)
        return str(self.revisions[revision] / file)


def _refusal(kind: type[Exception]) -> Exception:
    return kind("no", response=SimpleNamespace(headers={}, request=None))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "main").mkdir()
    fake = Hub({"main": tmp_path / "main"})
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    answer = SimpleNamespace(head=lambda url, timeout: None)
    monkeypatch.setattr(download, "get_session", lambda: answer)
    return fake


def test_train_and_validation_are_downloaded_and_test_is_not(hub: Hub) -> None:
    main = hub.revisions["main"]
    write(main / "data" / "train-00000-of-00001.parquet", table(40))
    write(main / "data" / "validation-00000-of-00001.parquet", table(12, 500))
    write(main / "data" / "test-00000-of-00001.parquet", table(12, 900))
    sets = load_image_sets("hf:zoo/animals", tiny_model(ANIMALS))
    assert hub.downloaded == ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"]
    assert sorted(numbers(sets.evaluation.pixels)) == list(range(500, 512))
    assert len(sets.calibration) == 32
    assert sets.evaluation.source == "hf:zoo/animals"


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_single_split_is_divided(hub: Hub, split: str) -> None:
    main = hub.revisions["main"]
    write(main / "data" / "train-0.parquet", table(40))
    write(main / "data" / "test-0.parquet", table(12, 900))
    sets = load_image_sets(f"hf:zoo/animals@{split}", tiny_model(ANIMALS))
    assert hub.downloaded == [f"data/{split}-0.parquet"]
    assert len(sets.calibration) + len(sets.evaluation) == {"train": 40, "test": 12}[split]
    with pytest.raises(ImageError, match="no split 'holidays'; it has test, train"):
        load_image_sets("hf:zoo/animals@holidays", tiny_model(ANIMALS))


def test_other_data_sets_have_a_converted_copy(hub: Hub, tmp_path: Path) -> None:
    (hub.revisions["main"] / "cat.jpg").write_bytes(b"")
    hub.revisions["refs/convert/parquet"] = tmp_path / "converted"
    write(tmp_path / "converted" / "default" / "train" / "0000.parquet", table(40))
    write(tmp_path / "converted" / "default" / "partial-test" / "0000.parquet", table(12, 900))
    sets = load_image_sets("hf:zoo/animals", tiny_model(ANIMALS))
    assert sorted(numbers(sets.evaluation.pixels)) == list(range(900, 912))


def test_of_many_files_only_so_many_are_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        path = write(hub.revisions["main"] / f"train-0000{number}.parquet", table(40, 100 * number))
    write(hub.revisions["main"] / "test-00000.parquet", table(12, 900))
    monkeypatch.setattr(huggingface, "CALIBRATION_BYTES", int(2.5 * path.stat().st_size))
    sets = load_image_sets("hf:zoo/animals", tiny_model(ANIMALS))
    assert hub.downloaded == ["train-00000.parquet", "train-00001.parquet", "test-00000.parquet"]
    assert any("of the 4 files of the split train the first 2 are used" in note for note in sets.sample.notes)


def test_refusals_are_one_sentence(hub: Hub) -> None:
    model = tiny_model(ANIMALS)
    (hub.revisions["main"] / "README.md").write_text("animals")
    reasons = r"has no parquet files.*\(main holds 1 other file\(s\), there is no refs/convert/parquet\)"
    with pytest.raises(ImageError, match=reasons):
        load_image_sets("hf:zoo/animals", model)
    write(hub.revisions["main"] / "big" / "train-0.parquet", table())
    write(hub.revisions["main"] / "small" / "train-0.parquet", table())
    with pytest.raises(ImageError, match=r"several configurations \(big, small\)"):
        load_image_sets("hf:zoo/animals", model)
    for kind, message in (
        (GatedRepoError, "accepted its conditions"),
        (RepositoryNotFoundError, "the hub has no data set zoo/animals"),
    ):
        hub.error = _refusal(kind)
        with pytest.raises(ImageError, match=message):
            load_image_sets("hf:zoo/animals", model)
    hub.error = ConnectionError("the line\nwas cut")
    with pytest.raises(ImageError, match=r"cannot be downloaded \(the line\); try again later"):
        load_image_sets("hf:zoo/animals", model)


@pytest.mark.parametrize(
    "source", ["hf:", "hf:animals", "hf:../../etc", "hf:/etc/passwd", "hf:a/b/c", "hf:a/b@", "hf:a b/c"]
)
def test_names_that_are_none(source: str) -> None:
    with pytest.raises(ImageError, match="names no data set of the Hugging Face hub"):
        load_image_sets(source, tiny_model(3))


PROGRAM = """
import sys
from pathlib import Path
from tests.images.files import ANIMALS, numbers, tiny_model
from mixqvit.images.loading import load_image_sets
from mixqvit.errors import ImageError

model = tiny_model(ANIMALS)
load_image_sets(sys.argv[1], model)
print(sorted({name.split(".")[0] for name in sys.modules} & {"datasets", "pyarrow"}), flush=True)
for line in sys.stdin:
    try:
        sets = load_image_sets("hf:zoo/animals", model)
        print(numbers(sets.evaluation.pixels), len(sets.calibration), sets.sample.notes, flush=True)
    except ImageError as error:
        print(error, flush=True)
"""


def serve(repository: Path, port: int) -> ThreadingHTTPServer:
    """What the hub answers about one repository, from a folder."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            path = self.path.split("?")[0]
            tree, file = "/api/datasets/zoo/animals/tree/main", "/datasets/zoo/animals/resolve/"
            content, status = b"", 200
            if path == tree:
                files = sorted(repository.rglob("*.parquet"))
                names = {one.relative_to(repository).as_posix(): one.stat().st_size for one in files}
                listed = [{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in names.items()]
                content = json.dumps(listed).encode()
            elif path.startswith(file):
                content = (repository / path.removeprefix(file).split("/", 1)[1]).read_bytes()
            elif path != "/":
                status = 404
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            return content

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.slow
def test_the_real_client_without_network_with_it_and_without_again(tmp_path: Path) -> None:
    """In a process of its own, because the hub's address is read once. Nothing is written but the cache folder."""
    repository, home, cache = (tmp_path / name for name in ("repository", "home", "cache"))
    write(repository / "data" / "train-0.parquet", table(40))
    write(repository / "data" / "test-0.parquet", table(6, 900))
    photos = class_folders(tmp_path / "photos")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "HUGGING"))}
    environment = plain | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HOME": str(home),
        "MIXQVIT_CACHE": str(cache),
    }
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(photos)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    ) as process:

        def answer() -> str:
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline()

        assert process.stdout.readline() == "[]\n", "a folder needs no library for data sets"
        refused = answer()
        assert f"hf:zoo/animals must be downloaded, but http://127.0.0.1:{port} cannot be reached" in refused
        assert "connect to the network, or give a folder" in refused
        assert not cache.exists()

        server = serve(repository, port)
        loaded = answer()
        server.shutdown()
        server.server_close()
        assert "900, 901, 902, 903, 904, 905] 32 " in loaded.replace("[", "")
        kept = answer()
        assert kept.split("(")[0] == loaded.split("(")[0]
        assert "what was downloaded before is used" in kept
        process.stdin.close()
    assert {path.parts[len(cache.parts)] for path in cache.rglob("*")} == {"datasets"}
    assert not home.exists()


def test_one_huge_file_is_refused_before_it_is_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    write(hub.revisions["main"] / "test-00000.parquet", table(12))
    monkeypatch.setattr(huggingface, "EVALUATION_BYTES", 1000)
    with pytest.raises(ImageError, match="a single file of hf:zoo/animals"):
        load_image_sets("hf:zoo/animals", tiny_model(ANIMALS))
    assert hub.downloaded == []
