"""Answers on disk by request hash, and what keeps them open: what was paid for once is not paid for again."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Self

from filelock import FileLock

from reasonembed_mteb.endpoints.endpoint import Reply
from reasonembed_mteb.errors import DataError, ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

FILE = "answers.sqlite"
_FORMAT = 1
# SQLite's own limit for the variables of one statement was 999 until 3.32.
_MOST_VARIABLES = 900
# Seconds to wait for another process that is writing.
_PATIENCE = 60.0


class AnswerCache:
    """Answers by request hash in one SQLite file with a write-ahead log.

    The index stays on disk, so that memory does not grow with the millions of pairs an annotator sees. A
    killed process loses no committed answer, and half a transaction at the log's end is dropped by SQLite's
    own checksums. Several processes may use the file at once; it belongs on a local disk, since the log's
    shared memory does not reach across machines.
    """

    def __init__(self, folder: Path, *, retry_errors: bool = False) -> None:
        """Open the file or make it.

        Args:
            folder: Where it is; made if absent.
            retry_errors: Do not find answers that are errors, so that they are asked for again.

        Raises:
            DataError: If the file is damaged or of another format.
            ReasonEmbedError: If it cannot be made.
        """
        self.file = folder / FILE
        self._retry_errors = retry_errors
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"cannot make {folder}: {error.strerror or error}; choose another folder"
            raise ReasonEmbedError(msg) from error
        # SQLite does not wait for a lock while it changes the journal, whatever its timeout.
        with self._told(), FileLock(self.file.with_suffix(".lock"), timeout=_PATIENCE):
            self._connection = sqlite3.connect(
                self.file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._prepare()

    def _prepare(self) -> None:
        """Set the journal and make the table, unless another process just has."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._close_if_unready)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing so; a machine without power loses the last moments at most.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("BEGIN IMMEDIATE")
            (found,) = self._connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                msg = f"{self.file} has format {found}, this version reads {_FORMAT}: choose another folder"
                raise DataError(msg)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (hash BLOB PRIMARY KEY, text TEXT, error TEXT,"
                " prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"
            )
            self._connection.execute(f"PRAGMA user_version = {_FORMAT}")
            self._connection.execute("COMMIT")
            stack.pop_all()

    def _close_if_unready(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say what SQLite met in our words."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            msg = (
                f"cannot write {self.file}: {error}; free space or see to the disk, and run again: "
                "what was answered before is kept"
            )
            raise ReasonEmbedError(msg) from error
        except sqlite3.DatabaseError as error:
            msg = f"{self.file} is damaged ({error}): move it away, and its answers are asked for again"
            raise DataError(msg) from error

    def find(self, hashes: Sequence[bytes]) -> dict[bytes, Reply]:
        """Look up many answers at once.

        Args:
            hashes: Request hashes.

        Returns:
            Those that are there.

        Raises:
            DataError: If the file is damaged.
        """
        found: dict[bytes, Reply] = {}
        fine = " AND error IS NULL" if self._retry_errors else ""
        with self._told(), self._lock:
            for start in range(0, len(hashes), _MOST_VARIABLES):
                part = hashes[start : start + _MOST_VARIABLES]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(
                    "SELECT hash, text, error, prompt_tokens, completion_tokens FROM answers"
                    f" WHERE hash IN ({marks}){fine}",
                    part,
                )
                found.update((row[0], Reply(*row[1:])) for row in rows)
        return found

    def add(self, outcomes: Iterable[tuple[bytes, Reply]]) -> None:
        """Store answers in one transaction; they are safe once this returns.

        An answer that is already there stays, unless it is an error.

        Args:
            outcomes: Request hash and outcome.

        Raises:
            ReasonEmbedError: If the disk is full.
        """
        rows = [(key, o.text, o.error, o.prompt_tokens, o.completion_tokens) for key, o in outcomes]
        with self._told(), self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE SET"
                    " text = excluded.text, error = excluded.error, prompt_tokens = excluded.prompt_tokens,"
                    " completion_tokens = excluded.completion_tokens WHERE answers.error IS NOT NULL",
                    rows,
                )
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                # SQLite has undone some failures by itself already; then there is nothing to roll back.
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        """Return how many answers there are."""
        with self._told(), self._lock:
            (count,) = self._connection.execute("SELECT count(*) FROM answers").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


class KeepsAnswers:
    """What answers requests from a file of answers, and closes it at the end of a ``with``."""

    _cache: AnswerCache

    def close(self) -> None:
        """Close the answers on disk."""
        self._cache.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the answers on disk."""
        self.close()
