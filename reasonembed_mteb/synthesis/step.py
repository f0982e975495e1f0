"""What every step of a run shares: configuration, clients, corpora and finished steps."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from reasonembed_mteb.errors import DataError, ReasonEmbedError, one_line
from reasonembed_mteb.files import ContentHashes, fingerprint
from reasonembed_mteb.synthesis.annotators import known_annotator
from reasonembed_mteb.synthesis.corpus import Corpus, check_unchanged, open_corpus
from reasonembed_mteb.synthesis.own import OwnData, read_own
from reasonembed_mteb.synthesis.prompts import domain_of, load_prompts, prompt_for
from reasonembed_mteb.synthesis.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Answer, Request
    from reasonembed_mteb.synthesis.config import AskingSection, Config, DomainSection, SubsetSection
    from reasonembed_mteb.synthesis.prompts import Prompt
    from reasonembed_mteb.synthesis.shards import Row

logger = logging.getLogger(__name__)

# Raised where rows are written differently, so that older folders are made again.
FORMAT = 1


# What stands in place of the steps before each.
_OWN_PARTS = {
    "mine": ("queries",),
    "annotate": ("queries", "mined"),
    "reason": ("queries", "labels"),
    "format": ("queries", "labels", "reasoned"),
}


class Client(Protocol):
    """What answers requests: over the network, or from the cache alone."""

    def run(
        self, requests: Iterable[Request], *, total: int | None = None, description: str
    ) -> Iterator[Answer]:
        """Answer in the order of the requests."""


@dataclass
class Run:
    """One run.

    Attributes:
        config: The configuration.
        make_client: Gives the client of an endpoint, by its name in the configuration.
        say: Takes a line for people.
        models: Retrievers that are loaded, by name.
        hashes: Hashes of files, each taken once a run.
    """

    config: Config
    make_client: Callable[[str], Client]
    say: Callable[[str], None] = logger.info
    models: dict[str, Any] = field(default_factory=dict)
    _clients: dict[str, Client] = field(default_factory=dict)
    hashes: ContentHashes = field(default_factory=ContentHashes)
    _corpus: Corpus | None = None
    _own: dict[str, OwnData] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Return the folder of everything that is made."""
        return self.config.output_folder

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """Return the templates by step."""
        own = self.config.templates
        return load_prompts(None if own is None else self.config.path(own))

    def own(self, subset: SubsetSection) -> OwnData:
        """Return what a subset begins with, read once."""
        if subset.name not in self._own:
            self._own[subset.name] = read_own(subset, self.config, self.corpus(subset))
        return self._own[subset.name]

    def own_parts(self, subset: SubsetSection) -> tuple[str, ...]:
        """Return the parts that the user brings, in place of the steps before the subset's first."""
        return () if subset.start is None else _OWN_PARTS[subset.start.at]

    def own_shards(self, subset: SubsetSection, part: str) -> Shards:
        """Return a part that the user brings."""
        generate, section = self.config.generate, self.config.format
        checks = [generate.leak_similarity, generate.leak_words, self.config.mine.score_ceiling is not None]
        checks += [section.positive_from, section.negative_to, section.min_positives, section.min_negatives]
        corpus = self.corpus(subset)
        return self.shards(part, subset, "own", self.own(subset).fingerprint, corpus.fingerprint, checks)

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401 - a transformers tokenizer
        """Return the tokenizer of the model to be trained, None where the configuration names none.

        Raises:
            ReasonEmbedError: If it cannot be loaded.
        """
        name = self.config.reason.train_model
        if name is None or self.config.reason.skip:
            return None
        from transformers import AutoTokenizer

        folder = self.config.path(name)
        try:
            return AutoTokenizer.from_pretrained(folder if folder.is_dir() else name)
        except (OSError, ValueError) as error:
            msg = (
                f"reason.train_model: the tokenizer of {name} cannot be loaded ({one_line(error)}); give a "
                "hub name or the directory of the model to be trained"
            )
            raise ReasonEmbedError(msg) from error

    def client(self, endpoint: str) -> Client:
        """Return the client of an endpoint."""
        if endpoint not in self._clients:
            self._clients[endpoint] = self.make_client(endpoint)
        return self._clients[endpoint]

    def corpus(self, subset: SubsetSection) -> Corpus:
        """Return a subset's corpus, the same one as in earlier steps.

        Raises:
            DataError: If it changed since.
        """
        if self._corpus is None or self._corpus.name != subset.name:
            self._corpus = None
            corpus = open_corpus(subset, self.config)
            check_unchanged(corpus, self.folder / "corpus" / f"{subset.name}.json")
            self._corpus = corpus
        return self._corpus

    def domain(self, subset: SubsetSection) -> DomainSection:
        """Return what the language model is told about a subset's domain."""
        return domain_of(subset, self.config)

    def shards(self, part: str, subset: SubsetSection, *causes: Any) -> Shards:
        """Return one part of a step's output.

        Args:
            part: Its folder's name.
            subset: Its name is the folder below that.
            *causes: What the rows are made from; another cause makes them again.
        """
        return Shards(
            self.folder / part / subset.name, fingerprint(FORMAT, part, subset.name, *causes), self.hashes
        )

    def prompt(self, section: AskingSection, step: str) -> Prompt:
        """Return a step's template: the user's, else the one of the annotator that is asked, else ours."""
        return prompt_for(self.prompts[step], self.config.endpoint(section.endpoint).model)

    def sampling(self, section: AskingSection) -> tuple[float, float, int | None, int]:
        """Return temperature, top_p, longest answer and seed, in the order in which requests take them."""
        longest = section.max_tokens
        if longest is None and (known := known_annotator(self.config.endpoint(section.endpoint).model)):
            longest = known.max_tokens
        return section.temperature, section.top_p, longest, self.config.seed

    def asking(self, section: AskingSection, step: str, subset: SubsetSection) -> list[Any]:
        """Return what decides the answers of a step that asks: sampling, model and wording."""
        endpoint = self.config.endpoint(section.endpoint)
        return [
            list(self.sampling(section)),
            [endpoint.model, endpoint.extra_body],
            [self.prompt(section, step).hash, self.domain(subset).model_dump()],
        ]


@dataclass(frozen=True)
class Step:
    """One step of the chain; each module of a step holds its own.

    Attributes:
        name: As users write it.
        work: Runs it for one subset.
        note: What the finished step counted, None where it has to run: its settings or inputs changed.
        parts: Its output in parts, by the names of their folders.
        asked: The parts that answers of a language model stand in.
    """

    name: str
    work: Callable[[Run, SubsetSection], None]
    note: Callable[[Run, SubsetSection], dict[str, Any] | None]
    parts: Callable[[Run, SubsetSection], Mapping[str, Shards]] = lambda _run, _subset: {}
    asked: tuple[str, ...] = ()


def in_blocks(rows: Iterator[Row], size: int) -> Callable[[int], list[Row]]:
    """Return a function that gives blocks of rows by number; numbers may be left out, but must rise.

    Args:
        rows: All rows; only one block is in memory at a time.
        size: Rows a block.
    """
    position = 0

    def block(index: int) -> list[Row]:
        nonlocal position
        # What lies before is passed over.
        deque(islice(rows, index * size - position), maxlen=0)
        position = (index + 1) * size
        return list(islice(rows, size))

    return block


def need(shards: Shards, step: str, subset: SubsetSection) -> dict[str, Any]:
    """Return the note of a finished part.

    Args:
        shards: The part.
        step: The step that writes it.
        subset: Whose part it is, for the message.

    Raises:
        DataError: If it is not finished with the present settings.
    """
    note = shards.note
    if note is None:
        msg = (
            f"the step {step} has not been finished for {subset.name} with the present settings; "
            f"run it first: reasonembed synthesize CONFIG.toml --step {step}"
        )
        raise DataError(msg)
    return note


@dataclass
class _Pending:
    shard: int
    item: Any
    wanted: int
    answers: list[Answer] = field(default_factory=list)


def ask(
    shards: Shards,
    count: int,
    load: Callable[[int], Iterable[tuple[Any, Sequence[Request]]]],
    row_of: Callable[[Any, list[Answer]], Row],
    client: Callable[[], Client],
    description: str,
) -> None:
    """Fill a folder with rows that a language model answered for, file by file.

    Files that are there are passed over. What a file lacks when a run ends early is answered from the
    cache by the next one.

    Args:
        shards: The folder; begun.
        count: Number of files.
        load: Gives the items of a file, by its number, each with its requests; none is allowed.
        row_of: The row of an item and its answers. Items wait for their answers in memory, so they should
            be small; the requests do not.
        client: Gives the client; not called when nothing is missing.
        description: For the progress bar.
    """
    queue: deque[_Pending] = deque()
    missing = [index for index in range(count) if not shards.has(index)]
    if not missing:
        return

    def requests() -> Iterator[Request]:
        for index in missing:
            for item, own in load(index):
                queue.append(_Pending(index, item, len(own)))
                yield from own

    rows = _answered(queue, client().run(requests(), description=description), row_of)
    for index, made in groupby(rows, key=itemgetter(0)):
        shards.write(index, (row for _, row in made))


def _answered(
    queue: deque[_Pending], answers: Iterator[Answer], row_of: Callable[[Any, list[Answer]], Row]
) -> Iterator[tuple[int, Row]]:
    """Give the rows of the items in the queue, which the requests fill, as their answers come in."""
    for answer in answers:
        while not queue[0].wanted:
            yield _row(queue.popleft(), row_of)
        queue[0].answers.append(answer)
        if len(queue[0].answers) == queue[0].wanted:
            yield _row(queue.popleft(), row_of)
    # What follows the last request asks for nothing.
    while queue:
        yield _row(queue.popleft(), row_of)


def _row(pending: _Pending, row_of: Callable[[Any, list[Answer]], Row]) -> tuple[int, Row]:
    row = row_of(pending.item, pending.answers)
    if pending.answers:
        row["tokens"] = [
            sum(answer.prompt_tokens for answer in pending.answers),
            sum(answer.completion_tokens for answer in pending.answers),
        ]
    return pending.shard, row
