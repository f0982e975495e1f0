"""What models that reason first would generate, and what of it is kept: nothing sent, no weights loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.evaluation.limits import own_copy
from reasonembed_mteb.evaluation.plan import CHARACTERS_A_TOKEN, load_here
from reasonembed_mteb.evaluation.variants import load_variant
from reasonembed_mteb.models.engines import without_weights
from reasonembed_mteb.reasoning.latents import context_length
from reasonembed_mteb.reasoning.reasoner import PromptFrame, own_key
from reasonembed_mteb.reasoning.running import base_key
from reasonembed_mteb.reasoning.sources import AskedReasonings, Query
from reasonembed_mteb.reasoning.store import ReasoningStore, known_models
from reasonembed_mteb.retrieval.rows import max_tokens_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta

    from reasonembed_mteb.evaluation.plan import TaskPlan
    from reasonembed_mteb.reasoning.running import ReasoningPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReasoningEstimate:
    """What one way of reasoning would come to on one task.

    Attributes:
        task: MTEB task name.
        reasoning: See `ReasoningPlan.name`.
        queries: Number of queries; None where nobody says.
        query_tokens: Of all queries with what goes before them; see `TaskPlan`.
        most_tokens: That can be generated for all of them: N times the queries.
        kept: Queries whose reasonings are there already; None where that is not known.
        left_tokens: That can be generated for the others, as far as it is known which they are.
        price: Of the others, at most; None without prices or for the model itself.
        estimated: Whether the price is none at most but estimated, as the queries are not here.
    """

    task: str
    reasoning: str
    queries: int | None
    query_tokens: int | None
    most_tokens: int | None
    kept: int | None
    left_tokens: int | None
    price: float | None
    estimated: bool = False


class ReasoningPlanner:
    """Says what models that reason first would generate on some tasks; each task is loaded once for all."""

    def __init__(self, tasks: Sequence[AbsTask], store: Path, limit: int | None = None) -> None:
        """Load nothing yet.

        Args:
            tasks: MTEB retrieval tasks, which are left as they are.
            store: Folder of the reasonings that are generated; it may not be there.
            limit: Number of queries of a smoke run.
        """
        self._tasks = {task.metadata.name: task for task in tasks}
        self._store, self._limit = store, limit
        self._queries: dict[str, list[Query] | None] = {}
        self._encoders: dict[str, Any] = {}

    def estimate(
        self, base: ModelMeta, plan: ReasoningPlan, planned: Sequence[TaskPlan]
    ) -> list[ReasoningEstimate]:
        """Say what a model with one way of reasoning would generate.

        Args:
            base: The model that embeds.
            plan: How it reasons.
            planned: What `reasonembed_mteb.evaluation.plan.plan_models` says of the model.

        Returns:
            One estimate for each of them.

        Raises:
            DataError: If the store is damaged, or a file names queries of several tasks by the same ids.
            ReasonEmbedError: If there is no room for a query beside the reasoning.
        """
        return [self._estimate(base, plan, one) for one in planned]

    def _estimate(self, base: ModelMeta, plan: ReasoningPlan, planned: TaskPlan) -> ReasoningEstimate:
        most = plan.decoding.max_tokens if plan.decoding is not None else 0
        kept, price, estimated = self._kept_of_itself(base, plan, planned.task), None, False
        if plan.source is not None:
            queries = self._queries_of(planned.task)
            estimated = queries is None
            kept, price = (
                (None, _about(plan.source, planned, most))
                if queries is None
                else plan.source.planned(queries)
            )
        every = None if planned.queries is None else planned.queries * most
        return ReasoningEstimate(
            planned.task,
            plan.name,
            planned.queries,
            planned.query_tokens,
            every,
            kept,
            None if every is None else every - most * (kept or 0),
            price,
            estimated=estimated and price is not None,
        )

    def _queries_of(self, name: str) -> list[Query] | None:
        """Return a task's queries as a run asks about them; None where its data are not here."""
        if name not in self._queries:
            own: Any = own_copy(self._tasks[name])
            here = load_here(own, self._limit)
            self._queries[name] = _queries(own) if here else None
            if here:
                own.unload_data()
        return self._queries[name]

    def _kept_of_itself(self, base: ModelMeta, plan: ReasoningPlan, task: str) -> int | None:
        """Return for how many queries the model's own reasoning is kept; None where that is not known."""
        if plan.source is not None or plan.decoding is None:
            return None
        names = known_models(self._store, base_key(base))
        if not names:
            # None where an earlier version wrote the store.
            return None if names is None else 0
        queries, encoder = self._queries_of(task), self._encoder(base)
        if queries is None or encoder is None:
            return None
        length = context_length(encoder.model)
        room = plan.generator.length(length)
        frame = PromptFrame(encoder.model.tokenizer, plan.prompt, room, plan.decoding.max_tokens)
        prefix = encoder.prompt_rule.prefix(self._tasks[task].metadata, "query")
        limit = min(length, max_tokens_for(task))
        prompts = [frame.ids(prefix + one.text, limit) for one in queries]
        engine = plan.generator.identity
        with ReasoningStore(self._store) as store:
            # In another dtype, as on another device, a model has another identity.
            return max(
                _found(store, [own_key(name, one, frame.ending, plan.decoding, engine) for one in prompts])
                for name in names
            )

    def _encoder(self, base: ModelMeta) -> Any:  # noqa: ANN401 - an MTEB encoder
        """Return a model without its weights; None where its loader does not go without."""
        key = base_key(base)
        if key not in self._encoders:
            try:
                with without_weights():
                    self._encoders[key] = load_variant(base, device="meta")
            except Exception:
                logger.debug("%s cannot be loaded without its weights", base.name, exc_info=True)
                self._encoders[key] = None
        return self._encoders[key]


def _queries(task: Any) -> list[Query]:  # noqa: ANN401 - AbsTaskRetrieval
    return [
        Query(text, str(key), task.metadata.name)
        for group in task.dataset.values()
        for split in group.values()
        for key, text in zip(split["queries"]["id"], split["queries"]["text"], strict=True)
    ]


def _found(store: ReasoningStore, keys: Sequence[bytes]) -> int:
    found = store.find(list(dict.fromkeys(keys)))
    return sum(key in found for key in keys)


def _about(source: Any, planned: TaskPlan, most: int) -> float | None:  # noqa: ANN401 - a source
    """Return the price by published sizes, the longest answers counted."""
    if not isinstance(source, AskedReasonings) or planned.queries is None or planned.query_tokens is None:
        return None
    asked = planned.query_tokens + round(planned.queries * source.question_length / CHARACTERS_A_TOKEN)
    return source.endpoint.cost(asked, planned.queries * most)
