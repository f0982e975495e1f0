"""The annotator as a reranker: a language model grades documents from 1 to 5, as the annotate step does."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonembed_mteb.endpoints.endpoint import Request
from reasonembed_mteb.synthesis.annotate import UNJUDGED, median_label, parse_label
from reasonembed_mteb.synthesis.config import DomainSection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from reasonembed_mteb.llm.client import LLMClient
    from reasonembed_mteb.retrieval.reranker import Pair
    from reasonembed_mteb.synthesis.config import AnnotateSection
    from reasonembed_mteb.synthesis.prompts import Prompt

logger = logging.getLogger(__name__)

# For queries of whatever kind.
ANY_DOMAIN = DomainSection(
    topic="the subject of the query",
    asks="what someone wants to find out",
    wants="it holds what an answer needs, directly or by a step of reasoning",
    instruction="Retrieve text based on user query.",
)


class GradingReranker:
    """Scores pairs by asking a language model; see `reasonembed_mteb.retrieval.reranker`.

    A pair whose answers hold no grade gets NaN.
    """

    def __init__(
        self,
        client: LLMClient,
        prompt: Prompt,
        domain: DomainSection,
        section: AnnotateSection,
        seed: int = 42,
    ) -> None:
        """Keep what is asked, and of whom.

        Args:
            client: Asks the endpoint and keeps its answers.
            prompt: The template of the step ``annotate``.
            domain: What the language model is told of the queries.
            section: Sampling, samples a pair, and the longest pair.
            seed: Of the sampling.
        """
        self._client, self._prompt, self._domain, self._section = client, prompt, domain, section
        self._seed = seed

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the grades; not the address, since a model may move to another server."""
        section = self._section
        return {
            "kind": "annotator",
            "name": self._client.endpoint.model,
            "extra_body": self._client.endpoint.extra_body,
            "prompt": self._prompt.hash,
            "domain": self._domain.model_dump(),
            "samples": section.samples,
            "max_characters": section.max_characters,
            "sampling": [section.temperature, section.top_p, section.max_tokens, self._seed],
        }

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the median grade of each pair, ``(N,)``: 1 to 5, NaN without one.

        Args:
            pairs: Query and document.

        Raises:
            EndpointError: If the endpoint cannot be used. What was answered is kept.
            BudgetExceeded: If the budget is spent.
        """
        section = self._section
        fits = [len(query) + len(document) <= section.max_characters for query, document in pairs]
        total = section.samples * sum(fits)
        answers = self._client.run(self._requests(pairs, fits), total=total, description="Grading")
        scores = np.full(len(pairs), np.nan)
        reasons: Counter[str] = Counter()
        for place, fit in enumerate(fits):
            given = list(islice(answers, section.samples)) if fit else []
            grade = median_label([UNJUDGED if one.error else parse_label(one.text) for one in given])
            if grade != UNJUDGED:
                scores[place] = grade
                continue
            why = next((one.error for one in given if one.error), "unparsable")
            reasons[why if fit else "too long"] += 1
        # The progress bar ends with the last answer taken.
        next(answers, None)
        if reasons:
            logger.warning("%s gives some pairs no grade: %s", self._client.endpoint.model, dict(reasons))
        return scores

    def _requests(self, pairs: Sequence[Pair], fits: Sequence[bool]) -> Iterator[Request]:
        section, domain = self._section, self._domain
        values = {"topic": domain.topic, "asks": domain.asks, "wants": domain.wants}
        sampling = (section.temperature, section.top_p, section.max_tokens, self._seed)
        for place, (query, document) in enumerate(pairs):
            messages = self._prompt.messages(**values, query=query, document=document)
            for sample in range(section.samples if fits[place] else 0):
                yield Request(f"grade/{place}/{sample}", messages, *sampling, n_sample=sample)
