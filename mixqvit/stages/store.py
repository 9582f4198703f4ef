"""What is saved between runs: SQLite rows for numbers, safetensors files beside them for tensors.

Everything is written piece by piece as it is finished, atomically, so that a kill at any moment loses at most the piece
being computed. Keys are fingerprints of all that produced a result, so nothing stale is ever found.
"""

import hashlib
import json
import os
import platform
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from mixqvit.cache import default_folder
from mixqvit.errors import StoreError

__all__ = ["KEPT", "LIMIT_BYTES", "Store", "fingerprint"]

LIMIT_BYTES = 2 * 10**9
"""Size of the store above which the results written longest ago are dropped."""

KEPT = "kept "
"""How the keys begin of what a person saved and no run can compute again."""

_RENEW = "UPDATE claimed SET renewed = ? WHERE owner = ?"

CLAIM_SECONDS = 900
"""Time after which a claim that was not renewed is void: far longer than any piece takes that is claimed."""


def fingerprint(*parts: Any) -> str:
    """Return a hexadecimal SHA-256 of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_running(process: int) -> bool:
    """Return whether a process of this machine exists; on Windows, where asking would end it, assume so."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs as somebody else
    return True


class Store:
    """Results in one folder. Safe to use from several threads and processes at once."""

    def __init__(self, folder: Path | str | None = None) -> None:
        """Open the store, making the folder if needed.

        Args:
            folder: Where to keep results; the user's cache folder by default.

        Raises:
            StoreError: The folder cannot be written, or the database in it is damaged.
        """
        self.folder = Path(folder) if folder is not None else default_folder()
        with self._connect():
            pass

    def rows(self, key: str) -> dict[str, Any]:
        """Return all values saved under a key, by item, in the order they were first written."""
        with self._connect() as database:
            found = database.execute("SELECT item, value FROM results WHERE key = ? ORDER BY rowid", (key,))
            return {item: json.loads(value) for item, value in found}

    def put(self, key: str, item: str, value: Any) -> None:
        """Save a value that JSON can write; an earlier one of the same item is replaced."""
        self.put_many([(key, item, value)])

    def put_many(self, rows: Iterable[tuple[str, str, Any]], renewed: Iterable[str] = ()) -> None:
        """Save values that JSON can write, all or none of them.

        Args:
            rows: Key, item and value; earlier ones of the same items are replaced.
            renewed: Claims to renew, as `renew` does.
        """
        now = time.time()
        with self._connect() as database:
            database.executemany(
                "INSERT INTO results VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET value = excluded.value, written = excluded.written",
                [(key, item, json.dumps(value), now) for key, item, value in rows],
            )
            database.executemany(_RENEW, [(now, claim) for claim in renewed])

    def items(self, key: str) -> list[str]:
        """Return the items that are saved under a key, in the order they were first written."""
        with self._connect() as database:
            found = database.execute("SELECT item FROM results WHERE key = ? ORDER BY rowid", (key,))
            return [item for (item,) in found]

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, in the order something was first written under them."""
        with self._connect() as database:
            found = database.execute(
                "SELECT key FROM results WHERE substr(key, 1, ?) = ? GROUP BY key ORDER BY MIN(rowid)",
                (len(prefix), prefix),
            )
            return [key for (key,) in found]

    def delete(self, key: str, item: str) -> None:
        """Forget one value; nothing happens where there is none."""
        with self._connect() as database:
            database.execute("DELETE FROM results WHERE key = ? AND item = ?", (key, item))

    def forget(self, key: str) -> None:
        """Forget all that is saved under a key."""
        with self._connect() as database:
            database.execute("DELETE FROM results WHERE key = ?", (key,))
        shutil.rmtree(self.folder / "tensors" / key, ignore_errors=True)

    def claim(self, key: str, item: str) -> str | None:
        """Say that an item is being computed; returns the claim, None while somebody else has one, here or elsewhere.

        A claim ends with `release`, with its process, or `CLAIM_SECONDS` after it was last renewed by `renew`.
        """
        here, now, owner = platform.node(), time.time(), uuid.uuid4().hex
        with self._connect() as database:
            database.execute("BEGIN IMMEDIATE")
            found = database.execute(
                "SELECT host, process, renewed FROM claimed WHERE key = ? AND item = ?", (key, item)
            ).fetchone()
            if found is not None:
                host, process, renewed = found
                if now - renewed < CLAIM_SECONDS and (host != here or _is_running(process)):
                    return None
            row = (key, item, here, os.getpid(), now, owner)
            database.execute("INSERT OR REPLACE INTO claimed VALUES (?, ?, ?, ?, ?, ?)", row)
        return owner

    def renew(self, claim: str) -> None:
        """Say that the item of a claim is still being computed; nothing happens where the claim has ended."""
        with self._connect() as database:
            database.execute(_RENEW, (time.time(), claim))

    def release(self, claim: str) -> None:
        """End a claim."""
        with self._connect() as database:
            database.execute("DELETE FROM claimed WHERE owner = ?", (claim,))

    def tensors(self, key: str, item: str) -> tuple[dict[str, Any], dict[str, str]] | None:
        """Return saved tensors and their metadata; None if there are none or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key, item)
        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def metadata(self, key: str, item: str) -> dict[str, str] | None:
        """Return the metadata of saved tensors alone; None if there are none or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(key, item), "pt") as file:
                return file.metadata() or {}
        except (OSError, SafetensorError):
            return None

    def put_tensors(
        self, key: str, item: str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Save tensors in one file, atomically.

        Raises:
            StoreError: The folder cannot be written.
        """
        from safetensors.torch import save_file

        path = self._path(key, item)
        temporary = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.tmp")
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(contiguous, temporary, dict(metadata or {}))
            size = temporary.stat().st_size
            temporary.replace(path)
        except OSError as error:
            raise self._unwritable(error) from error
        self.put(key, f"tensors/{item}", size)
        self._prune()

    def size_bytes(self) -> int:
        """Return the bytes that the store takes on disk."""
        total = 0
        for file in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # the database's own side files come and go
                total += file.stat().st_size if file.is_file() else 0
        return total

    def clear(self) -> None:
        """Forget everything that was computed; what is saved under a key that begins with `KEPT` stays."""
        with self._connect() as database:
            database.execute("DELETE FROM results WHERE key NOT LIKE ?", (KEPT + "%",))
            database.execute("DELETE FROM claimed")
        with self._connect() as database:
            database.execute("VACUUM")
        for folder in (self.folder / "tensors").iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def _prune(self) -> None:
        with self._connect() as database:
            total = database.execute("SELECT SUM(value) FROM results WHERE item LIKE 'tensors/%'").fetchone()[0]
            query = "SELECT key, MAX(written) FROM results WHERE item LIKE 'tensors/%' GROUP BY key ORDER BY 2"
            oldest = database.execute(query).fetchall()
            for key, _ in oldest[:-1]:
                if (total or 0) <= LIMIT_BYTES:
                    break
                query = "SELECT COALESCE(SUM(value), 0) FROM results WHERE key = ? AND item LIKE 'tensors/%'"
                total -= database.execute(query, (key,)).fetchone()[0]
                database.execute("DELETE FROM results WHERE key = ?", (key,))
                shutil.rmtree(self.folder / "tensors" / key, ignore_errors=True)

    @property
    def _database(self) -> Path:
        return self.folder / "results.sqlite"

    def _path(self, key: str, item: str) -> Path:
        return self.folder / "tensors" / key / f"{item}.safetensors"

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """One short-lived connection per use: connections must not cross threads, and the files may be deleted."""
        try:
            (self.folder / "tensors").mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._database, timeout=30)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS results (key TEXT, item TEXT, value TEXT, written REAL, "
                    "PRIMARY KEY (key, item))"
                )
                database.execute(
                    "CREATE TABLE IF NOT EXISTS claimed (key TEXT, item TEXT, host TEXT, process INTEGER, "
                    "renewed REAL, owner TEXT, PRIMARY KEY (key, item))"
                )
                with database:
                    yield database
        except (OSError, sqlite3.OperationalError) as error:
            raise self._unwritable(error) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"The saved results in {self._database} are damaged ({error}). Delete this file; they will be "
                "computed again."
            ) from error

    def _unwritable(self, error: Exception) -> StoreError:
        return StoreError(
            f"The cache folder {self.folder} cannot be written ({error}). Make it writable, or set the environment "
            "variable MIXQVIT_CACHE to a folder that is."
        )
