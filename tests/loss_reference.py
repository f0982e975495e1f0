"""Redapter's loss with one loop for each query and each document, in fp64, and a small model to try it on.

Written from the protocol's section 6 alone; it shares no code with the package.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two vectors."""
    return (a * b).sum() / torch.sqrt((a * a).sum()) / torch.sqrt((b * b).sum())


def info_nce(vector: Tensor, positive: Tensor, others: list[Tensor], temperature: float) -> Tensor:
    """Return -log of the positive's share of the softmax over it and the others."""
    scores = [cosine(vector, positive) / temperature]
    for document in others:
        scores.append(cosine(vector, document) / temperature)
    highest = max(score.item() for score in scores)
    total = torch.zeros((), dtype=torch.float64)
    for score in scores:
        total = total + torch.exp(score - highest)
    return torch.log(total) + highest - scores[0]


@dataclass
class Settings:
    """What the loss is set to, and what the batch says beside the vectors."""

    temperature: float = 0.02
    cap: float = 5.0
    weighted: bool = True
    normalize: bool = True
    known: list[bool] | None = None
    # By query and group: numbers of the documents of that group that do not count.
    hidden: dict[tuple[int, int], set[int]] = field(default_factory=dict)


def redapter(
    queries: list[Tensor], reasoning: list[Tensor], groups: list[list[Tensor]], settings: Settings
) -> tuple[Tensor, list[float | None]]:
    """Return the loss of a batch and each query's clamped intensity, None where it has none.

    Args:
        queries: One vector a query.
        reasoning: One vector a query; not read where there is none.
        groups: By query its positive, then its negatives.
        settings: See there.
    """
    losses: list[Tensor] = []
    intensity: list[float | None] = []
    for i, query in enumerate(queries):
        others = []
        for g, group in enumerate(groups):
            for d, document in enumerate(group):
                if (g, d) != (i, 0) and d not in settings.hidden.get((i, g), set()):
                    others.append(document)
        losses.append(info_nce(query, groups[i][0], others, settings.temperature))
        if settings.known is not None and not settings.known[i]:
            intensity.append(None)
            continue
        easier = info_nce(
            reasoning[i].detach(),
            groups[i][0].detach(),
            [other.detach() for other in others],
            settings.temperature,
        ).item()
        intensity.append(min(max(losses[i].item() / (easier + 1e-6), 0.0), settings.cap))
    present = [value for value in intensity if value is not None]
    if not settings.weighted or not present:
        weights = [1 / len(queries)] * len(queries)
    else:
        mean = sum(present) / len(present)
        filled = [mean if value is None else value for value in intensity]
        total = sum(filled)
        if not settings.normalize:
            weights = filled
        elif total == 0:
            weights = [1 / len(queries)] * len(queries)
        else:
            weights = [value / total for value in filled]
    loss = torch.zeros((), dtype=torch.float64)
    for weight, one in zip(weights, losses, strict=True):
        loss = loss + weight * one
    return loss, intensity


def worst(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to max(1, |expected|)."""
    return ((actual - expected).abs() / expected.abs().clamp(min=1)).max().item()


class Bag(nn.Module):
    """Mean of learned token vectors, through one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)
        self.layer = nn.Linear(8, 6)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add ``sentence_embedding``, ``(B, 6)``."""
        mask = features["attention_mask"].to(self.layer.weight.dtype)[..., None]
        mean = (self.tokens(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        features["sentence_embedding"] = torch.tanh(self.layer(mean))
        return features


def bag_model() -> nn.Sequential:
    """Build a model of a few parameters, the same every time, that starts as quickly as torch does."""
    torch.manual_seed(3)
    return nn.Sequential(Bag()).double()


def bag_batch(queries: int, group: int, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Draw a batch: ``query``, ``reasoning_query`` and packed ``document`` features, with all extra keys."""
    draw = random.Random(seed)

    def column(rows: int) -> dict[str, Tensor]:
        lengths = [draw.randint(1, 7) for _ in range(rows)]
        ids = torch.tensor([[draw.randrange(50) for _ in range(7)] for _ in range(rows)])
        mask = torch.tensor([[int(position < length) for position in range(7)] for length in lengths])
        return {"input_ids": ids, "attention_mask": mask}

    batch = {
        "query": column(queries),
        "reasoning_query": column(queries),
        "document": column(queries * group),
    }
    batch["reasoning_query"]["has_reasoning"] = torch.tensor([i % 3 != 1 for i in range(queries)])
    # Few enough to meet by chance.
    batch["document"]["document_ids"] = torch.tensor([draw.randrange(9) for _ in range(queries * group)])
    return batch


def share(batch: dict[str, dict[str, Tensor]], rank: int, world: int) -> list[dict[str, Tensor]]:
    """Cut one device's rows out of a batch, as the columns that a loss takes."""
    return [
        {key: value.chunk(world)[rank].clone() for key, value in column.items()} for column in batch.values()
    ]
