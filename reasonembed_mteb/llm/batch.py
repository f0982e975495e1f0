"""The offline mode: requests as files in OpenAI's batch format, and answers read back from such files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import asdict
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

from reasonembed_mteb.endpoints.endpoint import Answer, Reply, request_hash
from reasonembed_mteb.endpoints.limits import Counts, Usage
from reasonembed_mteb.endpoints.retries import AttemptError, refused_request
from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.files import read_json_lines, replacing
from reasonembed_mteb.llm.cache import AnswerCache, KeepsAnswers
from reasonembed_mteb.llm.grades import read_graded
from reasonembed_mteb.llm.replies import CHAT, read_completion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Endpoint, Request
    from reasonembed_mteb.endpoints.retries import Service

logger = logging.getLogger(__name__)

URL = "/v1/chat/completions"
# What OpenAI takes in one file (platform.openai.com/docs/guides/batch): 50,000 requests and 200 MB.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
# Answers per transaction.
_PART = 1_000
# Requests looked up in one query.
_LOOKED_UP = 256
_HASH_BYTES = 32
# Missing requests that are named.
_NAMED = 3


class MissingAnswersError(ReasonEmbedError):
    """Answers are not there yet.

    Attributes:
        keys: The first requests without an answer.
        count: How many there are.
        files: The requests to be sent.
    """

    def __init__(self, keys: Sequence[str], count: int, seen: int, files: Sequence[Path]) -> None:
        self.keys, self.count, self.files = list(keys), count, list(files)
        named = ", ".join(keys) + (" ..." if count > len(keys) else "")
        written = ", ".join(map(str, files))
        super().__init__(
            f"{count:,} of {seen:,} requests have no answer ({named}): they are written to {written}; "
            "have them answered as a batch, name the files of answers, and run again"
        )


class BatchFiles(KeepsAnswers):
    """Answers requests like `LLMClient`, from files of answers.

    Answers go into the same store on disk as the client's, under the request's hash, which is also each
    line's ``custom_id``. So a prompt that has changed since finds no old answer, and a client finishes what
    a batch left open.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache_folder: Path,
        requests_file: Path,
        answers: Iterable[Path] = (),
        *,
        service: Service = CHAT,
        retry_errors: bool = False,
    ) -> None:
        """Open the answers on disk and add those of the files.

        Args:
            endpoint: The model and its options; its address is not contacted.
            cache_folder: Where answers are kept.
            requests_file: Where `run` writes the requests that have no answer.
            answers: Files of answers in OpenAI's batch format.
            service: Which chat completions are asked for: plain ones, or with log-probabilities.
            retry_errors: Treat answers that are errors as missing.

        Raises:
            DataError: If a file is not of that format or cannot be read.
        """
        self.endpoint, self.requests_file, self._service = endpoint, requests_file, service
        self._counts = Counts()
        self._cache = AnswerCache(cache_folder, retry_errors=retry_errors)
        for file in answers:
            self._read(file)

    @property
    def usage(self) -> Usage:
        """What the files of answers cost; `requests` counts their answers."""
        counts = self._counts
        cost = self.endpoint.cost(counts.prompt_tokens, counts.completion_tokens)
        return Usage(**asdict(counts), cost=cost)

    def run(
        self,
        requests: Iterable[Request],
        *,
        total: int | None = None,
        description: str,
        ahead: int | None = None,
    ) -> Iterator[Answer]:
        """Answer requests in their order up to the first without an answer.

        Args:
            requests: What to ask.
            total: How many there are, for the progress bar.
            description: What is being done, for the progress bar.
            ahead: Must be None: a batch is asked as a whole.

        Yields:
            The answers.

        Raises:
            ReasonEmbedError: If requests are made of earlier answers.
            MissingAnswersError: If answers are missing; all requests without one are in `requests_file` then.
        """
        from tqdm.auto import tqdm

        if ahead is not None:
            msg = (
                f"{description}: requests that are made of earlier answers cannot be a batch; ask an endpoint"
            )
            raise ReasonEmbedError(msg)
        pairs = self._looked_up(tqdm(requests, total=total, desc=description, unit="answer", disable=None))
        for seen, (request, digest, outcome) in enumerate(pairs):
            if outcome is None:
                rest = chain([(request, digest, outcome)], pairs)
                raise self._missing(rest, seen)
            used = outcome.prompt_tokens, outcome.completion_tokens
            self._counts.cached += 1
            self._counts.cached_prompt_tokens += used[0]
            self._counts.cached_completion_tokens += used[1]
            self._counts.uncounted += outcome.uncounted
            yield Answer(request.key, outcome.text, outcome.error, *used, True)

    def write_requests(self, requests: Iterable[Request], file: Path) -> list[Path]:
        """Write the requests that have no answer on disk.

        Args:
            requests: What to ask. Equal requests are written once.
            file: Where to. What goes beyond the format's limits goes to ``<name>-2`` and so on beside it.

        Returns:
            The files written.

        Raises:
            ReasonEmbedError: If they cannot be written.
        """
        return _write(self._lines(self._looked_up(requests), Counter(), []), file)

    def _missing(self, rest: Iterable[_Looked], seen: int) -> MissingAnswersError:
        """Write the requests without an answer and return the error that says so."""
        count: Counter[str] = Counter()
        keys: list[str] = []
        files = _write(self._lines(rest, count, keys), self.requests_file)
        return MissingAnswersError(keys, count["missing"], seen + count["seen"], files)

    def _lines(self, looked_up: Iterable[_Looked], count: Counter[str], keys: list[str]) -> Iterator[bytes]:
        """Yield a line for each new request without an answer; count and name what is missing."""
        written: set[bytes] = set()
        for request, digest, outcome in looked_up:
            count["seen"] += 1
            if outcome is not None:
                continue
            count["missing"] += 1
            if len(keys) < _NAMED:
                keys.append(request.key)
            if digest not in written:
                written.add(digest)
                line = {"custom_id": digest.hex(), "method": "POST", "url": URL}
                # ASCII escapes, which also hold half a character pair.
                yield (
                    json.dumps({**line, "body": self._service.body(self.endpoint, request)}).encode("ascii")
                    + b"\n"
                )

    def _looked_up(self, requests: Iterable[Request]) -> Iterator[_Looked]:
        """Yield each request with its hash and its outcome, if that is on disk."""
        part: list[tuple[Request, bytes]] = []
        for request in requests:
            part.append((request, request_hash(self._service.body(self.endpoint, request), request.n_sample)))
            if len(part) == _LOOKED_UP:
                yield from self._with_outcomes(part)
                part = []
        yield from self._with_outcomes(part)

    def _with_outcomes(self, part: list[tuple[Request, bytes]]) -> Iterator[_Looked]:
        found = self._cache.find([digest for _, digest in part])
        for request, digest in part:
            yield request, digest, found.get(digest)

    def _read(self, file: Path) -> None:
        """Add a file of answers to those on disk; say what is no answer."""
        failed: Counter[str] = Counter()
        part: list[tuple[bytes, Reply]] = []
        for number, answer in read_json_lines(file, "give the file of answers as the provider wrote it"):
            digest, outcome, reason = _parsed(answer, f"{file}:{number}")
            if outcome is None:
                failed[self.endpoint.without_key(reason)] += 1
                continue
            part.append((digest, outcome))
            self._count(outcome)
            if len(part) == _PART:
                self._cache.add(part)
                part.clear()
        self._cache.add(part)
        for reason, count in failed.most_common():
            logger.warning("%s: %d requests without an answer: %s", file, count, reason)

    def _count(self, outcome: Reply) -> None:
        self._counts.requests += 1
        self._counts.prompt_tokens += outcome.prompt_tokens
        self._counts.completion_tokens += outcome.completion_tokens


# A request, its hash, and what it came to.
_Looked = tuple["Request", bytes, "Reply | None"]


def _parsed(answer: Any, where: str) -> tuple[bytes, Reply | None, str]:  # noqa: ANN401 (whatever JSON holds)
    """Read one line of answers.

    Args:
        answer: What it holds.
        where: File and number, for the message.

    Returns:
        The request's hash, what it came to, and why that is None where it is.

    Raises:
        DataError: If the line is not of the batch format, or belongs to no request of ours.
    """
    try:
        digest = bytes.fromhex(answer["custom_id"])
        if len(digest) != _HASH_BYTES:
            msg = f"custom_id is {answer['custom_id']!r}"
            raise ValueError(msg)
        error, response = answer.get("error"), answer.get("response") or {}
        status, body = int(response.get("status_code") or 0), response.get("body")
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        msg = f"{where}: not an answer in OpenAI's batch format to a request written here ({cause})"
        raise DataError(msg) from cause
    if error or not response:
        return digest, None, _said(error) or "no response"
    if status != 200:
        said = _said((body or {}).get("error", body) if isinstance(body, dict) else body)
        return digest, refused_request(status, said, said), f"status {status}: {said}"
    try:
        return digest, _read_chat(body), ""
    except AttemptError as cause:
        return digest, None, str(cause)


def _read_chat(body: Any) -> Reply:  # noqa: ANN401 (whatever JSON holds)
    """Read a chat completion, with its log-probabilities where it has some."""
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict) and first.get("logprobs"):
        return read_graded(json.dumps(body).encode())
    return read_completion(body)


def _said(error: Any) -> str:  # noqa: ANN401 (whatever JSON holds)
    """Return what an error object says, in one line."""
    if isinstance(error, dict):
        error = " ".join(str(error[name]) for name in ("code", "message") if error.get(name))
    return " ".join(str(error or "").split())


def _write(lines: Iterator[bytes], file: Path) -> list[Path]:
    """Write lines to a file and to numbered ones beside it, each within the format's limits."""
    files: list[Path] = []
    line: bytes | None = next(lines, b"")
    while line is not None:
        part = file if not files else file.with_stem(f"{file.stem}-{len(files) + 1}")
        with replacing(part) as path, path.open("wb") as out:
            line = _write_part(out, line, lines)
        files.append(part)
    # Parts of an earlier, longer list would be sent again.
    stale = len(files) + 1
    while (old := file.with_stem(f"{file.stem}-{stale}")).exists():
        old.unlink()
        stale += 1
    return files


def _write_part(out: IO[bytes], line: bytes, lines: Iterator[bytes]) -> bytes | None:
    """Write as many lines as one file may hold; return the first that it does not, None at the end."""
    count = size = 0
    current: bytes | None = line
    while current is not None and (
        not count or (count < MOST_REQUESTS and size + len(current) <= MOST_BYTES)
    ):
        out.write(current)
        count, size = count + 1, size + len(current)
        current = next(lines, None)
    return current
