"""What a planned run costs in all: tokens, hours, room on the disk, and what its tasks share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation.plan import mini_texts
from reasonembed_mteb.evaluation.record import read_record
from reasonembed_mteb.retrieval.rows import row_of_task
from reasonembed_mteb.retrieval.sources import nothing_fetched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.plan import TaskPlan
    from reasonembed_mteb.evaluation.runner import RunOptions

# Bytes of a stored number; `auto` takes the smallest dtype that is exact, float32 at most.
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 4}
# What a plan calls the tokens of each kind.
_TOKENS = {"documents": "document_tokens", "queries": "query_tokens"}
# What the store keeps beside a vector: its key, and its text's number of tokens.
_BESIDE = 20
# A run of fewer tokens says more of loading than of speed.
_ENOUGH_TOKENS = 20_000
# A measurement ends with the first batch after so many seconds.
_SECONDS = 5.0
_ROWS = 32


@dataclass(frozen=True)
class MeasuredSpeed:
    """How fast a model reads here.

    Attributes:
        tokens_a_second: Tokens encoded a second.
        how: Where the figure is from, in a few words.
        dimensions: Of a vector, where it is known.
    """

    tokens_a_second: float
    how: str
    dimensions: int | None = None


@dataclass(frozen=True)
class Shared:
    """Texts that several tasks have in common, encoded once.

    Attributes:
        kind: ``documents`` or ``queries``.
        tasks: The tasks.
        texts: Number of texts of one of them; None where nobody says.
    """

    kind: str
    tasks: tuple[str, ...]
    texts: int | None


@dataclass(frozen=True)
class Total:
    """What a model's tasks cost together.

    Attributes:
        tasks: Number of tasks planned.
        tokens: Tokens to read, as far as they are known; what several tasks share counts once.
        estimated: Whether some are estimated from published lengths.
        texts: Texts to encode, as far as their number is known; what several tasks share counts once.
        without_tokens: Tasks some of whose tokens are not known, by what is not: ``documents``, ``queries``.
        without_texts: Tasks whose number of documents or queries is not known.
        shared: What tasks have in common.
    """

    tasks: int
    tokens: int
    estimated: bool
    texts: int
    without_tokens: tuple[str, ...]
    without_texts: tuple[str, ...]
    shared: tuple[Shared, ...]

    def hours(self, speed: MeasuredSpeed) -> float:
        """Return the hours of encoding, search apart.

        Args:
            speed: Of the model on this machine.
        """
        return self.tokens / speed.tokens_a_second / 3600

    def disk(self, dimensions: int, dtype: str) -> int:
        """Return the bytes of the stored vectors.

        Args:
            dimensions: Of a vector.
            dtype: See `reasonembed_mteb.store.vectors`; ``auto`` counts as its largest.
        """
        return self.texts * (dimensions * _BYTES[dtype] + _BESIDE)


def add_up(plans: Sequence[TaskPlan], *, shares: bool = True, documents: bool = True) -> Total:
    """Add up what tasks cost.

    Args:
        plans: Of one model.
        shares: Whether a text is encoded once for all tasks, as with an embedding store.
        documents: Whether documents are encoded; they are stored already where only queries differ.
    """
    groups: dict[tuple[str, object], list[TaskPlan]] = {}
    for number, plan in enumerate(plans):
        # A text cut elsewhere, or after another instruction, has another vector.
        alone = () if shares else (number,)
        if documents:
            same = (plan.same_documents or number, plan.length, *alone)
            groups.setdefault(("documents", same), []).append(plan)
        asked = (plan.same_queries or number, plan.length, plan.prefix, *alone)
        groups.setdefault(("queries", asked), []).append(plan)
    tokens = sum(_most(members, _TOKENS[kind]) for kind, members in _named(groups))
    texts = sum(_most(members, kind) for kind, members in _named(groups))
    return Total(
        len(plans),
        tokens,
        any(plan.published and (plan.document_tokens or plan.query_tokens) for plan in plans),
        texts,
        tuple(plan.task for plan in plans if None in (plan.document_tokens, plan.query_tokens)),
        tuple(plan.task for plan in plans if None in (plan.documents, plan.queries)),
        tuple(
            Shared(kind, tuple(plan.task for plan in members), _most(members, kind) or None)
            for kind, members in _named(groups)
            if len(members) > 1
        ),
    )


def _named(groups: Mapping[tuple[str, object], list[TaskPlan]]) -> Iterator[tuple[str, list[TaskPlan]]]:
    for (kind, _), members in groups.items():
        yield kind, members


def by_benchmark(tasks: Iterable[str]) -> dict[str, int]:
    """Return how many tasks are of each benchmark, of ours where a table has the task.

    Args:
        tasks: MTEB task names.
    """
    counts: dict[str, int] = {}
    for task in tasks:
        row = row_of_task(task)
        name = row.benchmark.removesuffix("(ReasonEmbed)") if row is not None else task
        counts[name] = counts.get(name, 0) + 1
    return counts


def _most(plans: Iterable[TaskPlan], column: str) -> int:
    """Return the largest known value: equal but for estimates; 0 where none is known."""
    return max((getattr(plan, column) or 0 for plan in plans), default=0)


def recorded_speed(output: Path, meta: ModelMeta) -> MeasuredSpeed | None:
    """Return a model's speed in earlier runs on a device of the same name, or None.

    The fastest run counts: a run's time holds its search too, and what came from the store is not read again.

    Args:
        output: Folder of results; see `reasonembed_mteb.evaluation.record`.
        meta: The model.
    """
    best: MeasuredSpeed | None = None
    device = _device_name()
    for file in sorted((output / "records").rglob("*.json")):
        try:
            record = read_record(file)
        except DataError:
            continue
        cost = record.cost
        known = record.model == meta.name and cost.device_name == device and cost.seconds
        if known and (cost.tokens or 0) >= _ENOUGH_TOKENS:
            speed = (cost.tokens or 0) / (cost.seconds or 1)
            if best is None or speed > best.tokens_a_second:
                best = MeasuredSpeed(speed, f"the fastest earlier run, {record.task}", cost.dimensions)
    return best


def _device_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def mean_tokens(plans: Sequence[TaskPlan]) -> int:
    """Return the mean tokens of a planned document, or 256 where none is known.

    Args:
        plans: Of one model.
    """
    known = [(p.documents, p.document_tokens) for p in plans if p.documents and p.document_tokens]
    return round(sum(t for _, t in known) / sum(d for d, _ in known)) if known else 256


def measured_speed(
    meta: ModelMeta, options: RunOptions, tokens: int, characters_a_token: float
) -> MeasuredSpeed:
    """Encode the embedded benchmark's texts for some seconds, as a run would.

    Args:
        meta: The model; its weights must be here.
        options: How to run; its store is not used.
        tokens: Length of the texts, about; see `mean_tokens`.
        characters_a_token: Of the model's tokenizer.

    Raises:
        ReasonEmbedError: If the weights are not here, or the model counts no tokens.
    """
    from reasonembed_mteb.evaluation.runner import load_without_store
    from reasonembed_mteb.evaluation.variants import encoding_figures, use_devices

    with nothing_fetched():
        try:
            model = load_without_store(meta, options)
        except OSError as error:
            msg = f"{meta.name}: its weights are not here, so its speed cannot be measured"
            raise ReasonEmbedError(msg) from error
    texts = _texts_of(round(tokens * characters_a_token))
    _encode(model, texts[:2])
    encoding_figures(model, reset=True)
    started = time.perf_counter()
    width = 0
    while (seconds := time.perf_counter() - started) < _SECONDS:
        width = _encode(model, texts)
    use_devices(model, None)
    read = encoding_figures(model).get("tokens", 0)
    if not read:
        msg = f"{meta.name} counts no tokens: its speed cannot be measured"
        raise ReasonEmbedError(msg)
    how = f"measured now, texts of {round(read / encoding_figures(model)['texts'])} tokens"
    return MeasuredSpeed(read / seconds, how, width)


def _texts_of(characters: int) -> list[str]:
    """Return different texts of about this length, made of the embedded benchmark's."""
    whole = "\n".join(mini_texts())
    whole *= 1 + characters // len(whole)
    step = len(whole) // _ROWS
    # From different places, so that no two are one text.
    return [(whole[place * step :] + whole)[: max(characters, 1)] for place in range(_ROWS)]


def _encode(model: Any, texts: list[str]) -> int:  # noqa: ANN401 - mteb's EncoderProtocol
    from mteb.types import PromptType

    from reasonembed_mteb.retrieval.search import column_loader, search_metadata

    columns = {"id": [str(place) for place in range(len(texts))], "text": texts, "body": texts}
    encoded = model.encode(
        column_loader(columns, _ROWS),
        task_metadata=search_metadata("Speed", ""),
        hf_split="test",
        hf_subset="default",
        prompt_type=PromptType.document,
        batch_size=_ROWS,
        show_progress_bar=False,
    )
    return int(encoded.shape[1])
