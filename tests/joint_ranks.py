"""One of several processes that compute the joint loss: ``joint_ranks.py RANK WORLD FOLDER MODEL``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reasonembed_mteb.reasoning.joint import CachedJointLoss, JointLoss, language_head
from reasonembed_mteb.reasoning.latents import find_latents
from reasonembed_mteb.reasoning.masks import JointRow, lay_out

# The first process has every compression target, the second the longer generation target.
ROWS = (
    JointRow([300, 301, 302, 303, 304], written=1, question=[310], answer=[311, 312]),
    JointRow([305, 306], answer=[313, 314, 315], answer_ends=False),
    JointRow([307, 308, 309, 310], written=3),
    JointRow([311]),
)
GROUP = 2
WEIGHTS = {"generation_weight": 0.7, "representation_weight": 1.3, "compression_weight": 0.4}


def build(folder: str, *, cached: bool) -> tuple[JointLoss | CachedJointLoss, Any]:
    """Return the loss on a model in fp64 whose untied head is trained as a part of the backbone."""
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    model = ReasonEmbed(folder, device="cpu").double().train()
    backbone: Any = model.transformers_model
    backbone.lm_head = language_head(model).double().requires_grad_(True)
    if cached:
        options: dict[str, Any] = {"mini_batch_size": 1}
        return CachedJointLoss(model, start_step=0, gather_across_devices=True, **options, **WEIGHTS), model
    return JointLoss(model, start_step=0, gather_across_devices=True, **WEIGHTS), model


def share(model: Any, rank: int, world: int) -> list[dict[str, Any]]:
    """Return one process' columns of the batch."""
    size = len(ROWS) // world
    mine = range(rank * size, (rank + 1) * size)
    reasoning = [f"because of light {number}" for number in mine]
    documents = [f"wave {number} {place} " * (1 + number) for number in mine for place in range(GROUP)]
    latents = find_latents(model.tokenizer).ids
    return [
        lay_out([ROWS[number] for number in mine], latents, 2, 0),
        dict(model.preprocess(reasoning)),
        dict(model.preprocess(documents)),
    ]


def run(loss: Any, model: Any, columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the loss, its metrics and the gradient of every parameter."""
    model.zero_grad()
    value = loss(columns)
    value.backward()
    grads = {name.removeprefix("module."): one.grad.clone() for name, one in model.named_parameters()}
    return {"loss": value.detach(), "metrics": loss.metrics, "grads": grads}


def main() -> None:
    """Compute both losses and save what came out."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    results = {}
    for cached in (False, True):
        loss, model = build(sys.argv[4], cached=cached)
        columns = share(model, rank, world)
        # As the trainer does: the loss is built on the bare model.
        loss.model = DistributedDataParallel(model, find_unused_parameters=True)
        results[cached] = run(loss, loss.model, columns)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    # A reducer freed this soon can wait, with the interpreter's lock, for a thread of gloo that waits for it.
    os._exit(0)


if __name__ == "__main__":
    main()
