"""Corpus poisoning by gradient: the search for passages that many queries retrieve, resumable.

The method is HotFlip's variant for retrieval (arXiv 2501.04802 on arXiv 2310.19156), as the robustness study
(arXiv 2604.16576) uses it: queries are clustered by k-means, one passage a cluster; each iteration takes the
gradient of the similarity to the mean query of a batch and replaces the token at one position by the best of
the tokens that the gradient names, if that raises the similarity to the mean of another batch; the passage
with the best similarity to fixed validation queries is kept, so that this one never falls.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reasonembed_mteb.errors import DataError, ReasonEmbedError, unknown_name
from reasonembed_mteb.files import fingerprint, json_text, read_json_object, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from reasonembed_mteb.encoding.token_rows import TokenRowEncoder

RELEVANT, NEAREST, MASK = "relevant", "nearest", "mask"
STARTS = (RELEVANT, NEAREST, MASK)
# liyongkang123/hotflip_corpus_poisoning @f70c9e2b: queries whose mean stands for a batch; validation queries
# at most, and as a share.
BATCH_QUERIES = 64
MOST_VALIDATION = 1_000
VALIDATION_SHARE = 0.3
# k-means' own seed there, whatever the seed of the search.
_CLUSTER_SEED = 0
_KEPT_EVERY = 10


@dataclass(frozen=True)
class AttackSize:
    """How large a search is, and by what rules; the study's is `STUDY_SIZE`.

    Attributes:
        passages: How many are made, one a cluster of queries.
        tokens: Of a passage.
        iterations: Replacements that are tried in each passage.
        candidates: Tokens that the gradient names and that are tried at a position.
        start: What a passage begins as: ``relevant``, a random relevant document of the cluster's queries, as
            in the study; ``nearest``, the document nearest to the mean of the cluster; ``mask``, nothing but
            the tokenizer's [MASK]. Documents are cut; a shorter one is filled with [MASK] where special
            tokens may be taken and there is one, else it is repeated.
        special_tokens: Whether special tokens may be taken.
        seed: Of batches, positions and starts.
    """

    passages: int = 10
    tokens: int = 50
    iterations: int = 50
    candidates: int = 20
    start: str = RELEVANT
    special_tokens: bool = False
    seed: int = 1999

    def check(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            UnknownNameError: If the start is none of `STARTS`.
            ReasonEmbedError: If a number is not positive, or the seed is negative.
        """
        if self.start not in STARTS:
            raise unknown_name("start of a passage", self.start, STARTS)
        for name in ("passages", "tokens", "candidates"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}; give at least 1"
                raise ReasonEmbedError(msg)
        if self.iterations < 0 or self.seed < 0:
            name = "iterations" if self.iterations < 0 else "seed"
            msg = f"{name} is {getattr(self, name)}; give 0 or more"
            raise ReasonEmbedError(msg)


STUDY_SIZE = AttackSize(passages=50, iterations=5_000, candidates=100, special_tokens=True)


@dataclass(frozen=True)
class Cluster:
    """Queries that one passage is made for, as places among the making queries.

    Attributes:
        queries: All of them.
        training: Those that gradients and acceptance see.
        validation: Those that decide which passage is kept; all, where the cluster is small.
    """

    queries: NDArray[np.int64]
    training: NDArray[np.int64]
    validation: NDArray[np.int64]


def cluster_queries(vectors: NDArray[np.float32], size: AttackSize) -> list[Cluster]:
    """Part queries by k-means on their vectors, and each cluster's queries into training and validation.

    Args:
        vectors: ``(Q, dim)``.
        size: Its ``passages`` are the clusters.

    Raises:
        DataError: If there are fewer different queries than passages.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    different = len(np.unique(vectors, axis=0))
    if different < size.passages:
        msg = (
            f"{size.passages} passages need as many different queries to be made from, and there are "
            f"{different}; give fewer passages or more queries"
        )
        raise DataError(msg)
    found = KMeans(size.passages, random_state=_CLUSTER_SEED, n_init=10).fit(vectors).labels_
    return [_parted(np.flatnonzero(found == number), size.seed, number) for number in range(size.passages)]


def _parted(queries: NDArray[np.int64], seed: int, number: int) -> Cluster:
    count = min(MOST_VALIDATION, int(VALIDATION_SHARE * len(queries)))
    if not count:
        return Cluster(queries, queries, queries)
    shuffled = np.random.default_rng([seed, number]).permutation(queries)
    return Cluster(queries, np.sort(shuffled[count:]), np.sort(shuffled[:count]))


@dataclass
class SearchState:
    """How far a search is; what is kept between runs.

    Attributes:
        iteration: Iterations done.
        current: ``(A, T)`` ids of the passages as they stand.
        best: ``(A, T)`` ids of those with the best objective on the validation queries.
        start: The objective of each passage before the first iteration.
        objective: Of each of the best passages: mean similarity to the validation queries.
        curve: Mean of the objectives after each iteration, the start first.
        accepted: Replacements that were made in each passage.
    """

    iteration: int
    current: list[list[int]]
    best: list[list[int]]
    start: list[float]
    objective: list[float]
    curve: list[float] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


def read_state(file: Path, key: str) -> SearchState | None:
    """Read where a search stopped; None where there is nothing of this search.

    Args:
        file: Written by `GradientSearch.run`.
        key: What identifies the search.
    """
    content = read_json_object(file)
    if content is None or content.pop("key", None) != key:
        return None
    names = {one.name for one in fields(SearchState)}
    return SearchState(**content) if content.keys() == names else None


def usable_tokens(tokenizer: Any, rows: int, *, special_tokens: bool = False) -> NDArray[np.bool_]:  # noqa: ANN401
    """Return which tokens a passage may hold.

    Special tokens, added ones that are special, those that the vocabulary reserves (``[unused1]``), those
    that are no text of their own (parts of characters, space or joiners alone) and those with control
    characters are left out; rows of the embedding beyond the vocabulary always.

    Args:
        tokenizer: Of transformers.
        rows: Of the token embedding.
        special_tokens: Take every token of the vocabulary, as the study does.

    Returns:
        ``(rows,)``.
    """
    usable = np.zeros(rows, dtype=bool)
    size = min(rows, len(tokenizer))
    usable[:size] = True
    if special_tokens:
        return usable
    added = {token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
    barred = added | set(tokenizer.all_special_ids)
    for token, text in enumerate(tokenizer.batch_decode([[token] for token in range(size)])):
        reserved = text.startswith(("[unused", "<unused", "<|reserved", "<reserved"))
        usable[token] = not (token in barred or reserved) and _is_text(text)
    return usable


def _is_text(text: str) -> bool:
    """Whether a token shows something, and holds nothing that a text would not: no control characters."""
    kinds = {unicodedata.category(char) for char in text if char not in "\t\n\r"}
    return "�" not in text and "Cc" not in kinds and any(kind != "Cf" and kind[0] != "Z" for kind in kinds)


def first_tokens(
    text: str,
    tokenizer: Any,  # noqa: ANN401 - of transformers
    size: AttackSize,
    usable: NDArray[np.bool_],
) -> list[int]:
    """Return a passage's first ids: those of a text, cut or filled to the passage's length.

    Args:
        text: A document.
        tokenizer: The model's.
        size: Its ``tokens``, and whether special ones may be taken.
        usable: See `usable_tokens`.

    Raises:
        DataError: If no token of the text may be taken.
    """
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    kept = [token for token in ids if usable[token]][: size.tokens]
    if not kept:
        msg = (
            f"a document that a passage would begin as has no usable token ({text[:60]!r}); give another seed"
        )
        raise DataError(msg)
    if size.special_tokens and tokenizer.mask_token_id is not None:
        return kept + [tokenizer.mask_token_id] * (size.tokens - len(kept))
    return (kept * math.ceil(size.tokens / len(kept)))[: size.tokens]


@dataclass(frozen=True)
class Objective:
    """What passages are pulled towards: mean query vectors, since a similarity is linear in the query.

    Attributes:
        queries: ``(Q, dim)`` vectors of the making queries, of unit length where the similarity is cosine.
        clusters: One a passage.
    """

    queries: Tensor
    clusters: Sequence[Cluster]

    def validation(self) -> Tensor:
        """Return the mean of each cluster's validation queries, ``(A, dim)``."""
        return torch.stack([self.queries[one.validation].mean(dim=0) for one in self.clusters])

    def batch(self, number: int, draw: np.random.Generator) -> Tensor:
        """Return the mean of a batch of a cluster's training queries; of all where they are no more.

        Args:
            number: The cluster.
            draw: Draws the batch.
        """
        training = self.clusters[number].training
        if len(training) > BATCH_QUERIES:
            training = np.sort(draw.choice(training, BATCH_QUERIES, replace=False))
        return self.queries[training].mean(dim=0)


class GradientSearch:
    """The search: all passages take each iteration together."""

    def __init__(
        self,
        rows: TokenRowEncoder,
        objective: Objective,
        size: AttackSize,
        usable: NDArray[np.bool_],
    ) -> None:
        """Prepare.

        Args:
            rows: The model, as it reads documents.
            objective: What passages are pulled towards.
            size: How large the search is.
            usable: See `usable_tokens`.

        Raises:
            ReasonEmbedError: If a passage does not fit into the model's length.
        """
        size.check()
        if rows.room is not None and size.tokens > rows.room:
            msg = f"a passage of {size.tokens} tokens does not fit: the model has room for {rows.room}"
            raise ReasonEmbedError(msg)
        self._rows, self._objective, self._size = rows, objective, size
        self._validation = objective.validation()
        table = rows.table
        self._barred = torch.from_numpy(~usable).to(table.device)
        self._candidates = min(size.candidates, int(usable.sum()) - 1)

    def begin(self, first: Sequence[Sequence[int]]) -> SearchState:
        """Return the state before the first iteration.

        Args:
            first: ``(A, T)`` ids; see `first_tokens`.
        """
        ids = np.asarray(first, dtype=np.int64)
        objective = (self._rows.vectors(ids) * self._validation).sum(dim=1).tolist()
        mean = math.fsum(objective) / len(objective)
        return SearchState(
            iteration=0,
            current=ids.tolist(),
            best=ids.tolist(),
            start=list(objective),
            objective=objective,
            curve=[mean],
            accepted=[0] * len(ids),
        )

    def run(
        self,
        state: SearchState,
        file: Path,
        key: str,
        *,
        show_progress: bool = False,
    ) -> SearchState:
        """Search on, and keep where it stands; an interrupted search ends with the same passages.

        Args:
            state: Of `begin` or `read_state`.
            file: Where the state is kept.
            key: What identifies the search.
            show_progress: Whether a bar is shown.
        """
        from tqdm.auto import tqdm

        steps = range(state.iteration, self._size.iterations)
        bar = tqdm(steps, desc="Poisoning", unit="iteration", disable=not show_progress)
        for iteration in bar:
            self._step(state)
            bar.set_postfix_str(f"objective {state.curve[-1]:.4f}")
            if (iteration + 1) % _KEPT_EVERY == 0:
                _keep(state, file, key)
        _keep(state, file, key)
        return state

    def _step(self, state: SearchState) -> None:
        """Try one replacement in every passage."""
        current = np.asarray(state.current, dtype=np.int64)
        # No state of a generator needs to be kept: each iteration has its own.
        draws = [np.random.default_rng([self._size.seed, state.iteration, n]) for n in range(len(current))]
        shown = torch.stack([self._objective.batch(n, draw) for n, draw in enumerate(draws)])
        judged = torch.stack([self._objective.batch(n, draw) for n, draw in enumerate(draws)])
        places = np.array([draw.integers(current.shape[1]) for draw in draws])
        tokens = self._named(current, places, self._rows.gradients(current, shown))
        tried = _with_each(current, places, tokens)
        vectors = self._rows.vectors(tried.reshape(-1, current.shape[1])).reshape(*tried.shape[:2], -1)
        scores = (vectors * judged[:, None]).sum(dim=2)
        checked = (vectors * self._validation[:, None]).sum(dim=2)
        for number, chosen in enumerate(scores.argmax(dim=1).tolist()):
            # The passage itself is the first: a replacement must be better than it in the same batch.
            if scores[number, chosen] > scores[number, 0]:
                state.current[number] = tried[number, chosen].tolist()
                state.accepted[number] += 1
                self._keep_best(state, number, float(checked[number, chosen]))
        state.iteration += 1
        state.curve.append(math.fsum(state.objective) / len(state.objective))

    def _keep_best(self, state: SearchState, number: int, objective: float) -> None:
        if objective > state.objective[number]:
            state.best[number], state.objective[number] = list(state.current[number]), objective

    def _named(
        self, current: NDArray[np.int64], places: NDArray[np.int64], gradients: Tensor
    ) -> NDArray[np.int64]:
        """Return the tokens that would raise each passage's similarity most, to the first order."""
        every = np.arange(len(current))
        at_place = gradients[every, places]
        # The embedding at the place is a constant here, and so is the scale that some models multiply by.
        gains = (at_place.to(self._rows.table) @ self._rows.table.T).float()
        gains[:, self._barred] = -torch.inf
        gains[every, current[every, places]] = -torch.inf
        named: NDArray[np.int64] = gains.topk(self._candidates, dim=1).indices.cpu().numpy()
        return named


def _with_each(
    current: NDArray[np.int64], places: NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return ``(A, 1 + C, T)``: each passage itself, then with each token at its place."""
    tried = np.repeat(current[:, None], 1 + tokens.shape[1], axis=1)
    for number, place in enumerate(places.tolist()):
        tried[number, 1:, place] = tokens[number]
    return tried


def _keep(state: SearchState, file: Path, key: str) -> None:
    write_whole(file, json_text({"key": key} | asdict(state)))


def search_key(size: AttackSize, *content: object) -> str:
    """Return what identifies a search, however many iterations it has: more of them go on with it.

    Args:
        size: How large it is.
        *content: What else decides it: the model, the corpus, the queries.
    """
    settings: Mapping[str, Any] = asdict(size)
    return fingerprint({k: v for k, v in settings.items() if k != "iterations"}, *content)
