"""From rows to features: queries with their instructions, reasoning queries, packed documents with ids."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from reasonembed_mteb.errors import ReasonEmbedError, UnknownNameError
from reasonembed_mteb.retrieval.rows import instruction_for
from reasonembed_mteb.training.cuts import UNCUT, mean_cut, row_cuts, token_counts
from reasonembed_mteb.training.sampling import PASS, draw_group, generator
from reasonembed_mteb.training.schema import prefix_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def row_instruction(row: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """Return a row's instruction: its own, else the recipe's for its subset, else our tables', else none.

    Args:
        row: With ``instruction`` and ``subset``.
        given: The recipe's instructions by subset.
    """
    if row["instruction"]:
        return str(row["instruction"])
    if row["subset"] in given:
        return given[row["subset"]]
    try:
        return instruction_for(row["subset"])
    except UnknownNameError:
        return ""


def document_id(text: str) -> int:
    """Return a number that equal documents share, on every device.

    Args:
        text: The document, without prefix.
    """
    # Signed: the tensors that hold it are int64.
    return xxhash.xxh64_intdigest(text.encode()) - (1 << 63)


@dataclass
class GroupCollator(SentenceTransformerDataCollator):
    """Draw each row's documents and tokenise a batch.

    Gives the features ``query`` (with ``positive_ids``), ``reasoning_query`` (with ``has_reasoning``) and
    ``documents`` (with ``document_ids``): B queries and B x G documents, row by row, the positive first.

    Attributes:
        groups: Documents a query, by subset.
        seed: The run's seed.
        epoch: The epoch, which the trainer sets.
        with_reasoning: Whether reasoning queries are wanted.
        with_grades: Whether the grades of documents are.
        template: What goes before a query; empty for nothing.
        document_prefix: What goes before a document.
        instructions: Instruction by subset.
        query_tokens: Tokens of a query, its instruction included.
        reasoning_tokens: Tokens of a reasoning query, likewise; None takes those of a query.
        document_tokens: Tokens of a document.
    """

    groups: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    epoch: int = 0
    with_reasoning: bool = True
    with_grades: bool = False
    template: str = ""
    document_prefix: str = ""
    instructions: Mapping[str, str] = field(default_factory=dict)
    query_tokens: int = 512
    reasoning_tokens: int | None = None
    document_tokens: int = 512

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            features: Rows of `reasonembed_mteb.training.data.TrainingData`, of one subset.

        Returns:
            Tensors by ``<column>_<name>``, ``subset``, and with reasoning queries ``reasoning_cut``, the mean
            share of the rows' reasoning that is cut away.
        """
        texts = self.texts(features)
        batch: dict[str, Any] = {"subset": features[0]["subset"]}
        self._add(batch, "query", texts["query"], self.query_tokens)
        if self.with_reasoning:
            made = self._add(batch, "reasoning_query", texts["reasoning_query"], self.reasoning_limit)
            batch["reasoning_cut"] = self._cut(features, token_counts(made))
            known = [row["reasoning"] is not None for row in features]
            batch["reasoning_query_has_reasoning"] = torch.tensor(known)
        self._add(batch, "documents", texts["documents"], self.document_tokens)
        skip = len(self.document_prefix)
        ids = [document_id(text[skip:]) for text in texts["documents"]]
        batch["documents_document_ids"] = torch.tensor(ids)
        if self.with_grades:
            grades = [grade for row in features for _, grade in self._group(row)]
            batch["documents_grades"] = torch.tensor(grades, dtype=torch.float32)
        batch["query_positive_ids"] = self._positive_ids(features)
        return batch

    @staticmethod
    def _positive_ids(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Return the ids of every known positive ``(B, P)``; shorter rows repeat their first."""
        known = [[document_id(text) for text in row["positives"]] for row in rows]
        width = max(map(len, known))
        return torch.tensor([ids + ids[:1] * (width - len(ids)) for ids in known])

    def texts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Return the texts of a batch, prefixes included.

        Args:
            rows: Rows of one subset.

        Returns:
            ``query`` and ``reasoning_query``, B each, and ``documents``, B x G. A row without a reasoning
            query has its query in that place, which the loss ignores.
        """
        prefixes = self.prefixes(rows)
        found: dict[str, list[str]] = {"query": [], "reasoning_query": [], "documents": []}
        for row, prefix in zip(rows, prefixes, strict=True):
            found["query"].append(prefix + row["query"])
            # PROTOCOL section 6: the same instruction on both.
            found["reasoning_query"].append(prefix + (row["reasoning"] or row["query"]))
            found["documents"] += [self.document_prefix + text for text, _ in self._group(row)]
        return found

    def _group(self, row: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Draw a row's documents with their grades, NaN where they have none; the same ones at each call."""
        # A row that comes again in an epoch draws anew.
        again = [row[PASS]] if row.get(PASS) else []
        random = generator(self.seed, self.epoch, "group", row["subset"], row["row"], *again)
        good, bad = (
            list(zip(row[name], row.get(grades) or [math.nan] * len(row[name]), strict=True))
            for name, grades in (("positives", "positive_grades"), ("negatives", "negative_grades"))
        )
        return draw_group(good, bad, self.groups[row["subset"]], random)[0]

    def prefixes(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return what goes before each row's query.

        Args:
            rows: With ``instruction`` and ``subset``.
        """
        return [prefix_of(self.template, row_instruction(row, self.instructions)) for row in rows]

    @property
    def reasoning_limit(self) -> int:
        """Tokens at which a reasoning query is cut."""
        return self.query_tokens if self.reasoning_tokens is None else self.reasoning_tokens

    def check_room(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows whose instructions fill the length of a query: all queries would have one vector.

        Args:
            rows: Some of one subset, at least one.

        Raises:
            ReasonEmbedError: If no row has room for its query.
        """
        prefixes = sorted(set(self.prefixes(rows)))
        if "" in prefixes:
            return
        shortest = min(self._count(prefixes))
        if shortest >= self.query_tokens:
            msg = (
                f"subset {rows[0]['subset']}: {shortest:,} tokens stand around a query, its instruction "
                f"among them, which leaves no room for it in data.query_tokens={self.query_tokens:,}: "
                "give more, or shorter instructions"
            )
            raise ReasonEmbedError(msg)

    def cuts(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the share of its reasoning that each row with a reasoning query loses.

        Args:
            rows: Rows of any subsets.
        """
        return row_cuts(rows, self.prefixes(rows), self.reasoning_limit, self._count)

    def _cut(self, rows: Sequence[Mapping[str, Any]], kept: Sequence[int]) -> float:
        """Return the mean of `cuts`; only rows that fill their length are tokenised once more."""
        full = [row for row, tokens in zip(rows, kept, strict=True) if tokens >= self.reasoning_limit]
        known = sum(row["reasoning"] is not None for row in rows)
        shares = self.cuts(full)
        return mean_cut(shares + [0.0] * (known - len(shares)))

    def _count(self, texts: list[str]) -> list[int]:
        return token_counts(self.preprocess_fn(texts, prompt=None, task=None, max_length=UNCUT))

    def _add(self, batch: dict[str, Any], column: str, texts: list[str], tokens: int) -> dict[str, Any]:
        # Per call: the model's own length, which is saved with it, stays as it is.
        made: dict[str, Any] = self.preprocess_fn(texts, prompt=None, task=None, max_length=tokens)
        for name, value in made.items():
            batch[f"{column}_{name}"] = value
        return made
