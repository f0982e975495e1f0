"""How much of the reasoning a run cuts away: of each row, of a batch, of a sample of each subset."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

# Share of the reasoning above which the weights say more about the length than about the query.
WARN_ABOVE = 0.1
# More tokens than any text has.
UNCUT = 1 << 30


def cut_share(full: int, before: int, limit: int) -> float:
    """Return the share of a row's reasoning that its length takes away.

    Args:
        full: Tokens of the reasoning query.
        before: Tokens of what is no reasoning: the instruction, and the query where it is repeated.
        limit: Tokens that are kept.
    """
    if full <= limit:
        return 0.0
    return min(1.0, (full - limit) / max(1, full - before))


def row_cuts(
    rows: Sequence[Mapping[str, Any]],
    prefixes: Sequence[str],
    limit: int,
    count: Callable[[list[str]], list[int]],
) -> list[float]:
    """Return `cut_share` of each row that has a reasoning query.

    Args:
        rows: With ``query`` and ``reasoning``.
        prefixes: What goes before each row's query.
        limit: Tokens that are kept.
        count: Counts the tokens of texts, none cut.
    """
    given = [(row, prefix) for row, prefix in zip(rows, prefixes, strict=True) if row["reasoning"]]
    if not given:
        return []
    full = count([prefix + row["reasoning"] for row, prefix in given])
    before = count(
        [
            prefix + (row["query"] if row["reasoning"].startswith(row["query"]) else "")
            for row, prefix in given
        ]
    )
    return [cut_share(whole, part, limit) for whole, part in zip(full, before, strict=True)]


def mean_cut(shares: Sequence[float]) -> float:
    """Return the mean share, NaN where no row has a reasoning query.

    Args:
        shares: Of rows.
    """
    return sum(shares) / len(shares) if shares else math.nan


def warn_of_cuts(shares: Mapping[str, float], limit: int) -> None:
    """Say which subsets lose more of their reasoning than is worth weighing by.

    Args:
        shares: Mean share by subset.
        limit: Tokens that are kept.
    """
    high = {name: share for name, share in shares.items() if share > WARN_ABOVE}
    if high:
        logger.warning(
            "%s of the reasoning is cut away at %d tokens (instruction, query and reasoning): raise "
            "data.reasoning_tokens, take a model of longer texts, or make shorter reasoning; a row whose "
            "reasoning is cut wholly is trained as by InfoNCE",
            ", ".join(f"{share:.0%} ({name})" for name, share in high.items()),
            limit,
        )


def token_counts(features: Mapping[str, Any]) -> list[int]:
    """Count the tokens of a column's texts, padding left out.

    Args:
        features: What a model's ``preprocess`` returns, padded or packed.
    """
    ends = features.get("cu_seq_lens_q")
    if ends is not None:
        return [int(size) for size in ends.diff()]
    return [int(size) for size in features["attention_mask"].sum(dim=1)]


def position_limit(model: Any) -> int:  # noqa: ANN401 - a transformers model, or its configuration
    """Return the longest text that a model can take at all.

    Args:
        model: The model, or its configuration where it is not loaded.
    """
    for name, part in model.named_modules() if hasattr(model, "named_modules") else ():
        if name.endswith("position_embeddings") and hasattr(part, "num_embeddings"):
            # RoBERTa's positions begin after the padding's.
            return int(part.num_embeddings) - (0 if part.padding_idx is None else part.padding_idx + 1)
    config = getattr(model, "config", model)
    return int(getattr(config, "max_position_embeddings", None) or UNCUT)
