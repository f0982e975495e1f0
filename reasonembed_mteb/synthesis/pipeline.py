"""The whole chain: clean, generate, mine, annotate, reason, format; each step alone or all in a row."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import DataError, ReasonEmbedError, missing_extra, unknown_name
from reasonembed_mteb.llm.batch import BatchFiles, MissingAnswersError
from reasonembed_mteb.llm.client import Budget, LLMClient
from reasonembed_mteb.synthesis.annotators import known_annotator
from reasonembed_mteb.synthesis.card import write_card
from reasonembed_mteb.synthesis.corpus import open_corpus
from reasonembed_mteb.synthesis.format import formatted
from reasonembed_mteb.synthesis.own import read_own
from reasonembed_mteb.synthesis.prompts import load_prompts
from reasonembed_mteb.synthesis.step import Run
from reasonembed_mteb.synthesis.steps import STEPS as _STEPS
from reasonembed_mteb.synthesis.taking import take_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Answer, Request
    from reasonembed_mteb.synthesis.config import Config, SubsetSection
    from reasonembed_mteb.synthesis.corpus import Corpus
    from reasonembed_mteb.synthesis.prompts import Prompt
    from reasonembed_mteb.synthesis.step import Client, Step

logger = logging.getLogger(__name__)

STEPS = tuple(_STEPS)
# Where the answers of every step and endpoint are kept.
ANSWERS = "answers"
# What a request can fail with although another try may succeed; the client keeps it like an answer.
_PASSING = frozenset({"server_error", "timeout", "bad_answer"})


@dataclass(frozen=True)
class StepResult:
    """What one step came to for one subset.

    Attributes:
        step: The step.
        subset: The subset.
        state: ``made``, ``there`` (nothing had changed), ``waiting`` (for a batch) or ``failed``.
        rows: Rows that the step looked at.
        kept: Rows that went on.
        dropped: The others, by reason.
        error: What went wrong.
        mended: What was changed in rows that went on, by kind.
    """

    step: str
    subset: str
    state: str
    rows: int = 0
    kept: int = 0
    dropped: tuple[tuple[str, int], ...] = ()
    error: str | None = None
    mended: tuple[tuple[str, int], ...] = ()


def make_client(config: Config, *, retry_errors: bool = False) -> Callable[[str], Client]:
    """Return what makes clients for a run; they share one budget and one folder of answers.

    Args:
        config: The run's configuration.
        retry_errors: Ask again where an answer is an error.
    """
    limits = config.budget
    budget = Budget(max_cost=limits.max_cost, max_tokens=limits.max_tokens)

    def make(name: str) -> Client:
        endpoint = config.endpoint(name)
        folder = config.output_folder / ANSWERS
        return LLMClient(endpoint, folder, budget, retry_errors=retry_errors)

    return make


def batch_clients(config: Config, folder: Path, *, retry_errors: bool = False) -> Callable[[str], Client]:
    """Return what makes clients that ask nothing, and write what they would ask into a folder.

    Args:
        config: The run's configuration.
        folder: Gets a file a step and subset, in OpenAI's batch format.
        retry_errors: Ask again where an answer is an error.
    """

    def make(name: str) -> Client:
        return _BatchWriter(config, name, folder, retry_errors)

    return make


class _BatchWriter:
    """Answer from disk; one file of requests for each step, subset and endpoint."""

    def __init__(self, config: Config, name: str, folder: Path, retry_errors: bool) -> None:
        self._config, self._name, self._folder, self._retry = config, name, folder, retry_errors

    def run(
        self, requests: Iterable[Request], *, total: int | None = None, description: str
    ) -> Iterator[Answer]:
        file = self._folder / f"{description.replace(' ', '-')}-{self._name}.jsonl"
        endpoint = self._config.endpoint(self._name)
        answers = self._config.output_folder / ANSWERS
        with BatchFiles(endpoint, answers, file, retry_errors=self._retry) as batch:
            yield from batch.run(requests, total=total, description=description)


def take_answers(config: Config, files: Sequence[Path]) -> int:
    """Put the answers of a batch among those on disk.

    Args:
        config: The run's configuration.
        files: In OpenAI's batch format.

    Returns:
        How many there were.

    Raises:
        ReasonEmbedError: If a file cannot be read or is not of that format.
    """
    # The answers name their requests; which model wrote them stands there.
    endpoint = config.endpoint(next(iter(config.endpoints), "default"))
    folder = config.output_folder / ANSWERS
    with BatchFiles(endpoint, folder, folder / "requests.jsonl", files) as batch:
        return batch.usage.requests


def check_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Return steps in the order in which they run.

    Args:
        steps: Names; none means all.

    Raises:
        UnknownNameError: If a name is no step; the nearest is named.
    """
    for step in steps:
        if step not in STEPS:
            raise unknown_name("step", step, STEPS)
    return tuple(step for step in STEPS if step in steps or not steps)


def check_names(config: Config) -> None:
    """Check what a configuration names: domains, endpoints, files and templates.

    Args:
        config: The configuration.

    Raises:
        ReasonEmbedError: If something that is named does not exist.
    """
    run = Run(config, make_client=_no_client)
    for subset in config.subset:
        run.domain(subset)
    asked = [] if config.clean.skip else [config.clean.endpoint]
    asked += [config.generate.endpoint, config.annotate.endpoint]
    asked += [] if config.reason.skip else [config.reason.endpoint]
    for name in [*asked, *filter(None, [config.annotate.second_endpoint])]:
        config.endpoint(name)
    if config.annotate.gold is not None and not config.path(config.annotate.gold).is_file():
        msg = f"annotate.gold: {config.path(config.annotate.gold)} does not exist; correct the path"
        raise DataError(msg)
    # Read now, so that a wrong template or tokenizer is said before anything is sent.
    _ = run.prompts, run.tokenizer
    _tell_of_wording(run)


def _tell_of_wording(run: Run) -> None:
    """Warn where an annotator that was trained on a prompt of its own gets ours."""
    annotate = run.config.annotate
    for name in filter(None, [annotate.endpoint, annotate.second_endpoint]):
        known = known_annotator(run.config.endpoint(name).model)
        if known is not None and not run.prompts["annotate"].own:
            logger.warning(
                "%s was trained on a prompt that is not ours to ship: it is asked in our own words, with its "
                'five levels. Give its own as a file: templates = "annotator.toml", with a table [annotate]',
                known.name,
            )


def _no_client(name: str) -> Client:
    msg = f"no client for {name}: nothing is asked here"
    raise ReasonEmbedError(msg)


def synthesize(
    config: Config,
    steps: Sequence[str] = (),
    *,
    clients: Callable[[str], Client] | None = None,
    retry_errors: bool = False,
    say: Callable[[str], None] = logger.info,
) -> list[StepResult]:
    """Run steps for every subset, and write the data card where samples are there.

    A finished step whose inputs and settings are the same is passed over; one that was killed goes on.

    Args:
        config: The configuration.
        steps: Names of steps; none means all.
        clients: Gives the client of an endpoint by its name; by default one that asks it.
        retry_errors: Ask again where a request failed for good in an earlier run.
        say: Takes a line for people.

    Returns:
        One outcome per step and subset that was looked at. A subset that fails goes no further; the others
        do.

    Raises:
        ReasonEmbedError: If the configuration names what does not exist, an endpoint cannot be used, the
            budget is spent, or another run works in the folder.
    """
    chosen = check_steps(steps)
    check_names(config)
    with _alone(config.output_folder):
        run = Run(config, clients or make_client(config, retry_errors=retry_errors), say)
        outcomes: list[StepResult] = []
        stopped: set[str] = set()
        for step in chosen:
            for subset in config.subset:
                if subset.name not in stopped and not _is_before_start(step, subset):
                    outcome = _one(run, _STEPS[step], subset, retry_errors)
                    outcomes.append(outcome)
                    say(_line(outcome))
                    if outcome.state in ("failed", "waiting"):
                        stopped.add(subset.name)
        running = [subset for subset in config.subset if subset.name not in stopped]
        finished = [subset for subset in running if _is_finished(run, subset)]
        if finished:
            say(f"data card: {write_card(run, finished)}")
    return outcomes


def _begin(run: Run, step: Step, subset: SubsetSection) -> StepResult | None:
    """Take what the user brings, and say so once; return what is wrong where none of it is left."""
    assert subset.start is not None
    take_own(run, subset)
    note = run.own_shards(subset, "queries").note or {}
    dropped = tuple(note["dropped"].items())
    told = f"{note['kept']:,} of {note['rows']:,} queries of {subset.start.path} kept"
    told += _counted("dropped", dropped)
    if step.name == subset.start.at or not note["kept"]:
        run.say(f"{subset.name} begins at {subset.start.at}: {told}")
    if note["kept"]:
        return None
    return StepResult(step.name, subset.name, "failed", note["rows"], 0, dropped, told)


def _is_before_start(step: str, subset: SubsetSection) -> bool:
    """Whether a step is replaced by what the user brings."""
    return subset.start is not None and STEPS.index(step) < STEPS.index(subset.start.at)


def _one(run: Run, step: Step, subset: SubsetSection, retry_errors: bool) -> StepResult:
    """Run one step for one subset; what is wrong with its data stops no other subset."""
    try:
        if subset.start is not None and (failed := _begin(run, step, subset)):
            return failed
        if retry_errors:
            _forget_errors(run, step, subset)
        note = step.note(run, subset)
        state = "there"
        if note is None:
            step.work(run, subset)
            note, state = step.note(run, subset) or {}, "made"
    except DataError as error:
        return StepResult(step.name, subset.name, "failed", error=str(error))
    except MissingAnswersError as error:
        return StepResult(step.name, subset.name, "waiting", error=str(error))
    dropped = tuple(note["dropped"].items())
    if not note["kept"]:
        reasons = ", ".join(f"{why} ({count:,})" for why, count in dropped) or _nothing(step)
        told = f"{step.name} kept nothing of {subset.name}: {reasons}"
        return StepResult(step.name, subset.name, "failed", note["rows"], 0, dropped, told)
    mended = tuple(note.get("mended", {}).items())
    return StepResult(step.name, subset.name, state, note["rows"], note["kept"], dropped, mended=mended)


def _nothing(step: Step) -> str:
    """Say why a step had no row to look at."""
    if step.name == "reason":
        return "no query has positives and negatives enough (format.min_positives, format.min_negatives)"
    return "there was nothing to begin with"


def _is_finished(run: Run, subset: SubsetSection) -> bool:
    with contextlib.suppress(DataError):
        return formatted(run, subset) is not None
    return False


def _forget_errors(run: Run, step: Step, subset: SubsetSection) -> None:
    """Remove what failed requests left behind in a step that asks."""
    with contextlib.suppress(DataError):
        for name, part in step.parts(run, subset).items():
            if name in step.asked:
                part.forget(_PASSING)


def _line(outcome: StepResult) -> str:
    start = f"{outcome.step} {outcome.subset}: "
    if outcome.error is not None:
        return f"{start}{outcome.state}: {outcome.error}"
    kept = f"{outcome.kept:,} of {outcome.rows:,} kept"
    kept += _counted("dropped", outcome.dropped) + _counted("mended", outcome.mended)
    return start + kept + (", unchanged" if outcome.state == "there" else "")


def _counted(what: str, counts: Sequence[tuple[str, int]]) -> str:
    return f" ({what}: {', '.join(f'{why} {count:,}' for why, count in counts)})" if counts else ""


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock of a killed one is gone with it."""
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise missing_extra("filelock", "synthesis") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        msg = f"another run is working in {folder}; wait for it, or choose another output folder"
        raise ReasonEmbedError(msg) from None
    except PermissionError as error:
        msg = f"cannot write in {folder}: {error.strerror}; choose another output folder"
        raise ReasonEmbedError(msg) from error


# Characters of English text a token of today's vocabularies, about.
_CHARACTERS = 4
# Tokens that an answer takes, about: a verdict, a query with what comes before it, a judgement, a reasoning.
_ANSWERS = {"clean": 10, "generate": 900, "annotate": 400, "reason": 600}
# Mean of the target lengths with the default weights, in characters.
_QUERY = 300 * 6


@dataclass(frozen=True)
class Estimate:
    """One step of one subset.

    Attributes:
        step: The step.
        subset: The subset.
        requests: At most so many requests.
        prompt_tokens: Their length, about.
        completion_tokens: Their answers' length, about.
        cost: By the endpoint's prices; None without.
    """

    step: str
    subset: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def estimate(config: Config) -> list[Estimate]:
    """Say what a run would ask, at most: as if every document were kept and every query became a sample.

    Args:
        config: The configuration.

    Returns:
        One estimate per subset and step that asks.

    Raises:
        DataError: If a corpus cannot be read.
    """
    prompts = load_prompts(None if config.templates is None else config.path(config.templates))
    return [one for subset in config.subset for one in _subset(config, prompts, subset)]


def _subset(config: Config, prompts: dict[str, Prompt], subset: SubsetSection) -> list[Estimate]:
    corpus = open_corpus(subset, config)
    eligible, length, mean = _eligible(config, corpus)
    asked = min(eligible, config.clean.max_documents or eligible)
    sources = min(asked, config.sources.per_subset)
    if subset.start is not None:
        # What is known beforehand is not asked for; at most every candidate is new.
        asked, sources = 0, len(read_own(subset, config, corpus).queries)
    window = (config.mine.last_rank or config.mine.top_k) - config.mine.first_rank + 1
    pairs = sources * min(window, len(corpus) - 1) * config.annotate.samples
    sizes = {
        "clean": (0 if config.clean.skip else asked, length),
        "generate": (sources, length),
        "annotate": (pairs, mean + _QUERY),
        "reason": (0 if config.reason.skip else sources, _QUERY),
    }
    sizes = {
        step: (0 if _is_before_start(step, subset) else size[0], size[1]) for step, size in sizes.items()
    }
    made = []
    for step, (requests, characters) in sizes.items():
        wording = len(prompts[step].system) + len(prompts[step].user)
        prompt = requests * (characters + wording) // _CHARACTERS
        answer = requests * _ANSWERS[step]
        endpoint = config.endpoint(getattr(config, step).endpoint) if requests else None
        cost = None if endpoint is None else endpoint.cost(prompt, answer)
        made.append(Estimate(step, subset.name, requests, prompt, answer, cost))
    return made


def _eligible(config: Config, corpus: Corpus) -> tuple[int, int, int]:
    """Return how many documents can be sources, their mean length, and that of all."""
    limits, apart = config.sources, corpus.benchmark.gold | corpus.benchmark.excluded
    count = total = every = 0
    for _, name, text in corpus.documents():
        every += len(text)
        if name not in apart and limits.min_characters <= len(text) <= limits.max_characters:
            count += 1
            total += len(text)
    return count, total // max(1, count), every // len(corpus)
