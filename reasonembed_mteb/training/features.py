"""What the losses are given: the columns of a batch, and what a collator says about them beside the text.

A column is the feature dictionary of one sentence-transformers input. Three extra keys are understood, which
the model never sees; all are optional:

- ``has_reasoning``: in the reasoning query's column, ``(B,)`` bool. False: this row has no reasoning query.
  Absent: every row has one. The row's text is encoded all the same, and may be anything that the model can
  encode, such as the query itself.
- ``document_ids``: in every document column, int64, one for each of its rows. Equal ids mean equal documents,
  on every device: a hash of the text, for instance. Read only with ``mask_false_negatives=True``.
- ``positive_ids``: in the query's column, ``(B, P)`` int64, ids of every known positive of the query, of
  which the batch holds one; rows are filled up by repeating an id. Absent: the positive in the batch alone.

A collator of the sentence-transformers trainer emits them with the column's prefix, as
``reasoning_query_has_reasoning``, ``document_document_ids`` and ``query_positive_ids``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reasonembed_mteb.training.columns import LossError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reasonembed_mteb.training.columns import Roles

HAS_REASONING = "has_reasoning"
DOCUMENT_IDS = "document_ids"
POSITIVE_IDS = "positive_ids"
# A number for each document, which `reasonembed_mteb.training.distillation` learns from.
GRADES = "grades"
_EXTRA_KEYS = (HAS_REASONING, DOCUMENT_IDS, POSITIVE_IDS, GRADES)
# sentence-transformers' key of every layer's activations.
_LAYERS = "all_layer_embeddings"


@dataclass(frozen=True)
class Extras:
    """What a batch says beside its texts.

    Attributes:
        has_reasoning: ``(B,)`` bool, or None if every row has a reasoning query.
        document_ids: One int64 tensor a document column, or None.
        positive_ids: ``(B, P)`` int64, or None.
    """

    has_reasoning: Tensor | None = None
    document_ids: list[Tensor] | None = None
    positive_ids: Tensor | None = None


@dataclass(frozen=True)
class Columns:
    """A batch by the role of its columns, ready for the model.

    Attributes:
        query: The queries.
        reasoning: The reasoning queries, or None in a plain InfoNCE batch.
        documents: The positive first, then negatives; or one packed column.
        extras: What was taken out of them.
        given: The caller's own dictionaries: query, reasoning queries where there are any, documents.
    """

    query: dict[str, Any]
    reasoning: dict[str, Any] | None
    documents: list[dict[str, Any]]
    extras: Extras
    given: list[dict[str, Any]]

    def hand_back(self) -> None:
        """Leave every layer's activations, where the model gave them, in the caller's dictionaries.

        `AdaptiveLayerLoss` looks for them there when it calls the loss again for an earlier layer.
        """
        own = [self.query, *([] if self.reasoning is None else [self.reasoning]), *self.documents]
        for bare, given in zip(own, self.given, strict=True):
            if _LAYERS in bare:
                given[_LAYERS] = bare[_LAYERS]


def split_columns(columns: Sequence[dict[str, Any]], roles: Roles) -> Columns:
    """Sort the columns of a batch by their role and take the extra keys out.

    Args:
        columns: The batch.
        roles: Which is what; a column without a role is left out.

    Returns:
        The columns, as new dictionaries: the model adds its activations to those that it is given, and they
        would live as long as the batch.

    Raises:
        LossError: If an extra key stands in a column of another role.
    """
    query, documents = columns[roles.query], [columns[place] for place in roles.documents]
    reasoning = None if roles.reasoning is None else columns[roles.reasoning]
    _refuse_misplaced(query, roles.query, "query")
    if reasoning is not None:
        _refuse_misplaced(reasoning, roles.reasoning or 0, "reasoning_query")
    for place, column in zip(roles.documents, documents, strict=True):
        _refuse_misplaced(column, place, "document")
    ids = [column[DOCUMENT_IDS] for column in documents if DOCUMENT_IDS in column]
    if 0 < len(ids) < len(documents):
        msg = f"{DOCUMENT_IDS} in {len(ids)} of {len(documents)} document columns: give all of them or none"
        raise LossError(msg)
    has_reasoning = None if reasoning is None else reasoning.get(HAS_REASONING)
    extras = Extras(has_reasoning, ids or None, query.get(POSITIVE_IDS))
    given = [query, *([] if reasoning is None else [reasoning]), *documents]
    return Columns(
        _bare(query),
        None if reasoning is None else _bare(reasoning),
        list(map(_bare, documents)),
        extras,
        given,
    )


def _bare(column: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in column.items() if key not in _EXTRA_KEYS}


def _refuse_misplaced(column: dict[str, Any], index: int, role: str) -> None:
    """Refuse a key that belongs to another role: the columns are then not in the order they should be."""
    homes = {HAS_REASONING: "reasoning_query", DOCUMENT_IDS: "document", POSITIVE_IDS: "query"}
    for key, home in homes.items():
        if key in column and role != home:
            msg = (
                f"column {index} is read as the {role} but holds {key!r}, which belongs to the {home}: "
                "give (query, reasoning_query, documents...), or (query, documents...) with start_step=None"
            )
            raise LossError(msg)


def check_rows(query: Tensor, reasoning: Tensor | None, documents: list[Tensor], extras: Extras) -> None:
    """Check that the rows of all columns fit together.

    Args:
        query: ``(B, D)``.
        reasoning: ``(B, D)`` or None.
        documents: ``(B * n, D)`` each, for any n.
        extras: What came beside them.

    Raises:
        LossError: If they do not.
    """
    batch = len(query)
    if not batch:
        msg = "the batch has no rows: at least one query is needed"
        raise LossError(msg)
    if reasoning is not None and len(reasoning) != batch:
        msg = f"{len(reasoning)} reasoning queries for {batch} queries: give one for each query"
        raise LossError(msg)
    for index, column in enumerate(documents):
        if not len(column) or len(column) % batch:
            msg = (
                f"document column {index} has {len(column)} rows, no multiple of the {batch} queries: "
                "give B rows a column, or one packed column of B * G rows, all of the first query's first"
            )
            raise LossError(msg)
    _check_extras(batch, documents, extras)


def _check_extras(batch: int, documents: list[Tensor], extras: Extras) -> None:
    if extras.has_reasoning is not None and extras.has_reasoning.shape != (batch,):
        msg = f"{HAS_REASONING} has shape {tuple(extras.has_reasoning.shape)}; allowed is ({batch},)"
        raise LossError(msg)
    for index, (ids, column) in enumerate(zip(extras.document_ids or [], documents, strict=False)):
        if ids.shape != column.shape[:1] or ids.dtype != torch.int64:
            msg = (
                f"{DOCUMENT_IDS} of document column {index} is {ids.dtype} of shape {tuple(ids.shape)}; "
                f"allowed is int64 of shape ({len(column)},)"
            )
            raise LossError(msg)
    positive_ids = extras.positive_ids
    if positive_ids is not None and (positive_ids.ndim != 2 or len(positive_ids) != batch):
        msg = f"{POSITIVE_IDS} has shape {tuple(positive_ids.shape)}; allowed is ({batch}, P)"
        raise LossError(msg)
