"""What a run would ask and cost, before it is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonembed_mteb.synthesis.corpus import open_corpus
from reasonembed_mteb.synthesis.prompts import load_prompts

if TYPE_CHECKING:
    from reasonembed_mteb.synthesis.config import Config, SubsetSection
    from reasonembed_mteb.synthesis.corpus import Corpus
    from reasonembed_mteb.synthesis.prompts import Prompt

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
    window = (config.mine.last_rank or config.mine.top_k) - config.mine.first_rank + 1
    pairs = sources * min(window, len(corpus) - 1) * config.annotate.samples
    sizes = {
        "clean": (0 if config.clean.skip else asked, length),
        "generate": (sources, length),
        "annotate": (pairs, mean + _QUERY),
        "reason": (0 if config.reason.skip else sources, _QUERY),
    }
    made = []
    for step, (requests, characters) in sizes.items():
        wording = len(prompts[step].system) + len(prompts[step].user)
        prompt = requests * (characters + wording) // _CHARACTERS
        answer = requests * _ANSWERS[step]
        endpoint = config.endpoint(getattr(config, step).endpoint) if requests else None
        cost = None
        if endpoint and endpoint.price_in is not None and endpoint.price_out is not None:
            cost = (prompt * endpoint.price_in + answer * endpoint.price_out) / 1e6
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
