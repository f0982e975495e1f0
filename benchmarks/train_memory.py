"""Memory of one training step: the cached loss against the uncached one, on the same model and batch.

Each mode runs in a fresh process. What is printed is the peak above the loaded model during one forward and
backward pass of a weighted step: of the process's resident memory on a CPU (Linux only), of what torch
allocated on a GPU. Resident memory includes freed blocks that glibc keeps; `--tight` has them handed back at
once. The model is a random Qwen3 with right padding; texts are random tokens, all of full length unless
`--spread` draws theirs.

    python benchmarks/train_memory.py --queries 4 --group 6 --length 256 --mini-batch-size 4
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODES = ("uncached", "cached", "cached-tokens")
# LoRA as in the recipes (the authors' training scripts): rank 32 on every projection.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Build the model from a configuration alone; nothing is downloaded."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(options.seed)
    backbone = Qwen3Model(
        Qwen3Config(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=options.width // 8,
            use_cache=False,
        )
    )
    if options.tuned == "lora":
        from peft import LoraConfig, get_peft_model

        backbone = get_peft_model(backbone, LoraConfig(r=32, lora_alpha=64, target_modules=PROJECTIONS))
    if options.checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
        backbone.enable_input_require_grads()

    class Encoder(torch.nn.Module):
        """The decoder with last-token pooling."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            """Add ``sentence_embedding``."""
            ids, mask = features["input_ids"], features["attention_mask"]
            states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
            last = mask.sum(dim=1) - 1
            return features | {"sentence_embedding": states[torch.arange(len(ids)), last]}

    return torch.nn.Sequential(Encoder()).to(options.device).train()


def batch(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Draw queries, reasoning queries and one packed document column."""
    import torch

    draw = random.Random(options.seed)
    columns = []
    for rows in (options.queries, options.queries, options.queries * options.group):
        lengths = [
            draw.randint(options.length // 8, options.length) if options.spread else options.length
            for _ in range(rows)
        ]
        mask = torch.arange(options.length)[None] < torch.tensor(lengths)[:, None]
        ids = torch.randint(options.vocabulary, mask.shape) * mask
        features = {"input_ids": ids, "attention_mask": mask.long()}
        columns.append({key: value.to(options.device) for key, value in features.items()})
    return columns


def resident(field: str) -> float:
    """Read a field of /proc/self/status, in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take one step in this process."""
    import torch

    from reasonembed_mteb.training import CachedRedapterLoss, RedapterLoss

    model, columns = build(options), batch(options)
    mini: dict[str, Any] = {"mini_batch_size": options.mini_batch_size}
    if mode == "cached-tokens":
        mini = {"mini_batch_num_tokens": options.mini_batch_size * options.length}
    loss: Any = RedapterLoss(model, start_step=0)
    if mode != "uncached":
        loss = CachedRedapterLoss(model, start_step=0, **mini)
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = resident("VmRSS")
        # Forgets the peak of the imports.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    started = time.perf_counter()
    value = loss(columns)
    value.backward()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return {
        "mode": mode,
        "model_mib": before,
        "above_mib": peak - before,
        "seconds": seconds,
        "loss": value.item(),
        "gradient_norm": torch.stack(norms).norm().item(),
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"layers": 6, "width": 512, "vocabulary": 8192, "queries": 4, "group": 6, "length": 256}
    for name, value in (sizes | {"seed": 0}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mini-batch-size", type=int, default=4)
    parser.add_argument("--tuned", choices=("lora", "all"), default="lora")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--spread", action="store_true", help="draw lengths from an eighth to the whole")
    parser.add_argument("--tight", action="store_true", help="count what is live, not what glibc keeps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run every mode in a process of its own and print the table."""
    options = parse()
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    rows = []
    for mode in options.modes:
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--only", mode]
        # Blocks above this size go back to the system as soon as they are freed.
        tight = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if options.tight else {}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | tight)
        if done.returncode:
            sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    texts = options.queries * (2 + options.group)
    model = f"{options.layers} layers x {options.width}, {options.tuned}"
    tokens = f"{texts} texts of up to {options.length} tokens ({texts * options.length} in all)"
    print(f"{model}, {tokens}, mini-batches of {options.mini_batch_size}")
    print(
        f"{'mode':<14} {'model MiB':>10} {'MiB above':>10} {'of first':>9} {'s':>7} {'loss':>10} |gradient|"
    )
    for row in rows:
        print(
            f"{row['mode']:<14} {row['model_mib']:10.0f} {row['above_mib']:10.0f} "
            f"{row['above_mib'] / rows[0]['above_mib']:9.2f} {row['seconds']:7.1f} "
            f"{row['loss']:10.5f} {row['gradient_norm']:10.4f}"
        )


if __name__ == "__main__":
    main()
