import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

import mixqvit
from mixqvit.cache import default_folder
from mixqvit.errors import StoreError
from mixqvit.stages import store as store_module
from mixqvit.stages.store import CLAIM_SECONDS, Store, fingerprint


def test_rows_and_tensors_are_found_again_in_order(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    store.put("key", "b", 1.5)
    store.put("key", "a", [1, 2])
    store.put("key", "b", 2.5)
    store.put("other", "a", None)
    assert list(Store(store.folder).rows("key").items()) == [("b", 2.5), ("a", [1, 2])]
    assert store.rows("unknown") == {}
    store.put_tensors("key", "layer", {"x": torch.arange(6).reshape(2, 3).T}, {"kind": "test"})
    tensors, metadata = Store(store.folder).tensors("key", "layer")
    assert torch.equal(tensors["x"], torch.arange(6).reshape(2, 3).T)
    assert metadata == {"kind": "test"}
    assert store.tensors("key", "missing") is None


def test_a_damaged_tensor_file_counts_as_missing(tmp_path):
    store = Store(tmp_path)
    store.put_tensors("key", "layer", {"x": torch.zeros(100)})
    file = next((tmp_path / "tensors").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:50])
    assert store.tensors("key", "layer") is None


def test_a_damaged_database_says_which_file_to_delete(tmp_path):
    (tmp_path / "results.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match=r"results\.sqlite are damaged.*Delete"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_made_names_itself_and_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/cache cannot be written.*MIXQVIT_CACHE"):
        Store(tmp_path / "file" / "cache")


@pytest.fixture
def read_only_folder():
    """A store's folder that this process may read but not write, even where tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Store(folder).put("key", "item", 1)
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield folder
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        (folder / "tensors").chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="permissions work differently here")
def test_a_read_only_folder_is_refused_and_keeps_what_it_holds(read_only_folder):
    with pytest.raises(StoreError, match=r"cannot be written.*MIXQVIT_CACHE"):
        Store(read_only_folder).put("key", "item", 2)
    with closing(sqlite3.connect(f"file:{read_only_folder}/results.sqlite?immutable=1", uri=True)) as database:
        assert database.execute("SELECT item, value FROM results").fetchall() == [("item", "1")]


def test_an_open_store_goes_on_when_its_files_are_deleted(tmp_path):
    store = Store(tmp_path / "cache")
    store.put("key", "item", 1)
    shutil.rmtree(tmp_path / "cache")
    assert store.rows("key") == {}
    store.put("key", "item", 2)
    assert store.rows("key") == {"item": 2}


def test_threads_write_at_once(tmp_path):
    store = Store(tmp_path)

    def write(thread):
        for item in range(20):
            store.put("key", f"{thread} {item}", item)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.rows("key")) == 120


def test_clearing_forgets_everything_and_frees_the_space(tmp_path):
    store = Store(tmp_path)
    store.put("key", "item", 1)
    store.put_tensors("key", "layer", {"x": torch.zeros(200_000)})
    full = store.size_bytes()
    store.clear()
    assert store.rows("key") == {}
    assert store.tensors("key", "layer") is None
    assert store.size_bytes() < full / 10


def test_beyond_the_limit_the_oldest_results_go(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "LIMIT_BYTES", 250_000)
    store = Store(tmp_path)
    store.put("numbers", "row", 1)
    for index in range(4):
        store.put_tensors(f"key{index}", "layer", {"x": torch.zeros(25_000)})
        store.put(f"key{index}", "row", index)
    assert store.tensors("key0", "layer") is None
    assert store.rows("key0") == {}
    assert store.rows("numbers") == {"row": 1}  # takes next to nothing
    assert store.tensors("key3", "layer") is not None
    assert store.size_bytes() < 400_000


def test_a_key_is_forgotten_with_its_tensors(tmp_path):
    store = Store(tmp_path)
    for key in ("one", "other"):
        store.put(key, "row", 1)
        store.put_tensors(key, "layer", {"x": torch.zeros(2)}, {"kind": key})
    assert store.metadata("one", "layer") == {"kind": "one"}
    store.forget("one")
    assert store.rows("one") == {} and store.tensors("one", "layer") is store.metadata("one", "layer") is None
    assert set(store.items("other")) == {"row", "tensors/layer"} and store.tensors("other", "layer") is not None


def test_values_are_saved_together_and_claims_renewed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    claim = store.claim("key", "work")
    later = time.time() + CLAIM_SECONDS - 1
    with monkeypatch.context() as patch:
        patch.setattr("mixqvit.stages.store.time.time", lambda: later)
        store.put_many([("key", "a", 1), ("other", "b", 2)], [claim])
    assert (store.rows("key"), store.rows("other")) == ({"a": 1}, {"b": 2})
    monkeypatch.setattr("mixqvit.stages.store.time.time", lambda: later + CLAIM_SECONDS - 1)
    assert store.claim("key", "work") is None


def test_fingerprints_tell_apart_what_matters():
    assert fingerprint("a", 1) == fingerprint("a", 1)
    assert fingerprint("a", 1) != fingerprint("a", 2)


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXQVIT_CACHE", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("MIXQVIT_CACHE")
    assert "mixqvit" in str(default_folder())


def test_what_is_claimed_is_claimed_once_until_released(tmp_path):
    first, second = Store(tmp_path), Store(tmp_path)
    claim = first.claim("key", "work")
    assert claim
    assert not second.claim("key", "work")
    assert second.claim("key", "other work")
    assert second.claim("other key", "work")
    first.release(claim)
    assert second.claim("key", "work")
    first.renew(claim)  # of a claim that has ended
    first.release(claim)
    assert not first.claim("key", "work")


def test_a_claim_ends_with_its_process_or_when_it_is_not_renewed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    code = "import sys, mixqvit; print(mixqvit.Store(sys.argv[1]).claim('key', 'work') is not None)"
    root = Path(mixqvit.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=root, check=True)
    assert found.stdout == "True\n"
    claim = store.claim("key", "work")  # that process is gone
    assert claim
    monkeypatch.setattr("mixqvit.stages.store.platform.node", lambda: "another machine")
    assert not store.claim("key", "work")
    later = time.time() + CLAIM_SECONDS - 1
    monkeypatch.setattr("mixqvit.stages.store.time.time", lambda: later)
    assert not store.claim("key", "work")
    store.renew(claim)
    later += 2
    assert not store.claim("key", "work")
    later += CLAIM_SECONDS
    assert store.claim("key", "work")


def test_items_are_listed_and_deleted(tmp_path):
    store = Store(tmp_path)
    for item in ("b", "a", "c"):
        store.put("key", item, 1)
    assert store.items("key") == ["b", "a", "c"]
    store.delete("key", "a")
    store.delete("key", "not there")
    assert store.items("key") == ["b", "c"]
    assert store.items("other key") == []
