"""One of several processes that compute the losses together: ``loss_ranks.py RANK WORLD FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loss_reference import bag_batch, bag_model, share
from torch.nn.parallel import DistributedDataParallel

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training import CachedRedapterLoss, RedapterLoss

QUERIES, GROUP = 6, 3
CACHES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "rows": {"mini_batch_size": 2},
    "tokens": {"mini_batch_num_tokens": 9},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "before": {"start_step": 1},
    "after": {"start_step": 0},
    "cap": {"start_step": 0, "max_intensity": 0.5},
    "sum": {"start_step": 0, "normalize_weights": False},
    "mask": {"start_step": 0, "mask_false_negatives": True},
}


def run(loss: RedapterLoss, model: torch.nn.Module, columns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the loss, its metrics and the gradient of every parameter."""
    model.zero_grad()
    value = loss(columns)
    value.backward()
    grads = {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": value.detach(), "metrics": loss.metrics, "grads": grads}


def build(cache: str, **settings: Any) -> tuple[RedapterLoss, torch.nn.Module]:
    """Build a fresh model and its loss."""
    model, options = bag_model(), CACHES[cache]
    kind = RedapterLoss if options is None else CachedRedapterLoss
    return kind(model, **settings, **(options or {})), model


def main() -> None:
    """Compute every case and save what came out."""
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    mine = share(bag_batch(QUERIES, GROUP), rank, world)
    results = {}
    for gather in (True, False):
        for cache in CACHES:
            for name, settings in SETTINGS.items():
                loss, model = build(cache, gather_across_devices=gather, **settings)
                # As the trainer does: the loss is built on the bare model.
                loss.model = DistributedDataParallel(model)
                results[gather, cache, name] = run(loss, loss.model, mine)
    loss, _ = build("plain", gather_across_devices=True)
    try:
        loss(share(bag_batch(QUERIES, GROUP + rank), rank, world))
    except ReasonEmbedError as error:
        results["uneven"] = str(error)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    # A reducer freed this soon can wait, with the interpreter's lock, for a thread of gloo that waits for it.
    os._exit(0)


if __name__ == "__main__":
    main()
