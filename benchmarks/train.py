"""A training step: ours against the reference's scheme, on the same model, rows and loss.

The reference encodes sub-batches of 4 rows, all padded to the longest text of the batch, and keeps every
sub-batch's activations (FlagEmbedding's decoder-only embedder, written here as a plain function). Ours
encodes queries and documents at once, packed without padding (`packed`, decoders alone), or with cached
gradients in mini-batches of a token budget. Each way runs in a fresh process; the rows' lengths are drawn
from a seed. Prints one table; `--json` prints the rows.

    python benchmarks/train.py --queries 4 --lora 32
    python benchmarks/train.py --model sentence-transformers/all-MiniLM-L6-v2 --ways reference ours cached
    python benchmarks/train.py --model Qwen/Qwen3-4B --lora 32 --bf16 --checkpointing --queries 8 --group 16
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import encode

WAYS = ("reference", "ours", "packed", "cached", "cached-packed")
SUB_BATCH = 4


def recipe_of(options: argparse.Namespace, way: str) -> Any:  # noqa: ANN401
    """Build the recipe of a way."""
    from reasonembed_mteb.training.recipes import check_recipe

    lora: dict[str, Any] = {"rank": options.lora}
    if options.targets:
        lora["targets"] = options.targets.split(",")
    return check_recipe(
        {
            "model": {"name": options.model},
            "lora": lora,
            "loss": {
                "start_step": 0,
                "gather_across_devices": False,
                "mini_batch_tokens": options.budget if "cached" in way else 0,
            },
            "data": {"query_tokens": options.tokens, "document_tokens": options.tokens},
            "training": {
                "precision": "bf16" if options.bf16 else "fp32",
                "checkpointing": options.checkpointing,
                "attention": options.attention,
            },
        },
        "benchmark",
    )


def random_model(size: str, folder: Path) -> str:
    """Save a random Qwen3 whose tokenizer has one word a token; return its directory."""
    seed, target = folder / "seed", folder / "model"
    encode.save_seed(seed, encode.SIZES[size][-1])
    chosen = argparse.Namespace(
        model=None, size=size, seed_folder=str(seed), dtype="float32", device="cpu", seed=0, max_tokens=8192
    )
    encode.load(chosen).save_pretrained(str(target))
    return str(target)


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Draw rows; lengths are log-normal, as passages' are."""
    import numpy as np

    random = np.random.default_rng(options.seed)
    words = [f"word{number}" for number in range(500)]

    def text(median: int) -> str:
        return " ".join(random.choice(words, max(3, int(random.lognormal(np.log(median), 0.7)))))

    return [
        {
            "subset": "all",
            "row": index,
            "query": text(options.median // 2),
            "reasoning": text(options.median),
            "instruction": "Given a post, retrieve passages.",
            "positives": [text(options.median)],
            "negatives": [text(options.median) for _ in range(options.group - 1)],
        }
        for index in range(options.queries * (options.steps + 1))
    ]


def embed(model: Any, features: dict[str, Any]) -> Any:  # noqa: ANN401
    """Encode a column as the reference does: 4 rows at a time, with the padding of the whole batch."""
    import torch

    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    count = len(tensors["input_ids"])
    parts = [
        model({name: value[start : start + SUB_BATCH] for name, value in tensors.items()})[
            "sentence_embedding"
        ]
        for start in range(0, count, SUB_BATCH)
    ]
    return torch.cat(parts)


def reference_loss(model: Any, columns: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    """Compute Redapter's loss as the reference does."""
    import torch
    from torch.nn import functional

    columns = [
        {key: value for key, value in column.items() if key.endswith(("input_ids", "attention_mask"))}
        for column in columns
    ]
    query, reasoning, documents = columns
    found, group = embed(model, query).float(), len(documents["input_ids"]) // len(query["input_ids"])
    texts = embed(model, documents).float()
    targets = torch.arange(len(found), device=found.device) * group

    def losses(vectors: Any, candidates: Any) -> Any:  # noqa: ANN401
        scores = functional.normalize(vectors, dim=-1) @ functional.normalize(candidates, dim=-1).T
        return functional.cross_entropy(scores / 0.02, targets, reduction="none")

    own = losses(found, texts)
    with torch.no_grad():
        easier = losses(embed(model, reasoning).float(), texts)
        intensity = (own / (easier + 1e-6)).clamp(0, 5)
    return (intensity / intensity.sum() * own).sum()


def run_way(options: argparse.Namespace, way: str) -> dict[str, Any]:
    """Run one way and measure it."""
    import torch
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer

    from reasonembed_mteb.training.adapters import load_model, pack_texts
    from reasonembed_mteb.training.building import make_loss
    from reasonembed_mteb.training.collator import GroupCollator

    torch.manual_seed(0)
    recipe = recipe_of(options, way)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(recipe).to(device)
    model.eval()  # Without dropout, so that all ways have one loss.
    for module in model.modules():
        # Checkpointing works in training mode only.
        module.training = options.checkpointing and not isinstance(module, torch.nn.Dropout)
    if "packed" in way:
        pack_texts(model, torch.device(device), half=options.bf16)
    loss = make_loss(model, recipe, 0)
    rows = rows_of(options)
    collator = GroupCollator(
        preprocess_fn=model.preprocess,
        groups={"all": options.group},
        template=recipe.model.template,
        query_tokens=options.tokens,
        document_tokens=options.tokens,
    )
    size = options.queries
    batches = [collator(rows[start : start + size]) for start in range(0, len(rows), size)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, values, tokens = 0.0, [], 0
    for index, batch in enumerate(batches):
        columns, _ = SentenceTransformerTrainer.collect_features(None, batch)  # type: ignore[arg-type]
        columns = [
            {
                key: value.to(device) if isinstance(value, torch.Tensor) else value
                for key, value in one.items()
            }
            for one in columns
        ]
        started = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=options.bf16):
            value = reference_loss(model, columns) if way == "reference" else loss(columns, None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
        if index:  # The first step warms up.
            seconds += time.perf_counter() - started
            tokens += sum(int(one.get("attention_mask", one["input_ids"] != -1).sum()) for one in columns)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else (peak - before) / 2**20
    return {
        "way": way,
        "seconds_a_step": seconds / options.steps,
        "tokens_a_second": tokens / seconds,
        "gib": gib,
        "loss": values[0],
    }


def main() -> None:
    """Run every way in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="6x512", help=f"name, directory, or a random Qwen3: {', '.join(encode.SIZES)}"
    )
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512, help="longest text")
    parser.add_argument("--median", type=int, default=120, help="words of a passage")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--budget", type=int, default=16384, help="tokens of a cached mini-batch")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--targets", default="", help="layers with adapters, by commas")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--attention", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run_way(options, options.way)))
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(options.model, Path(folder)) if options.model in encode.SIZES else options.model
        for way in options.ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--model", model]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{options.model}, {options.queries} queries x {options.group} documents, "
        f"mean of {options.steps} steps"
    )
    print(f"{'way':10} {'s/step':>8} {'tokens/s':>9} {'GiB above the model':>20} {'first loss':>11}")
    for one in found:
        speed = f"{one['seconds_a_step']:8.2f} {one['tokens_a_second']:9.0f}"
        print(f"{one['way']:10} {speed} {one['gib']:20.2f} {one['loss']:11.6f}")


if __name__ == "__main__":
    main()
