"""Latent tokens and reasoning on a tiny decoder with synthetic rows: a check of the mechanism, not a result.

A two-layer decoder is trained to find texts of a query's topic, once for each number of latent tokens K on
one budget of steps; 0 is last-token pooling. Topics are sets of made-up words; the scored queries and
documents are drawn from the same topics and never trained on. Then the model with the most latents reasons
before it embeds, N tokens; it was never trained to, so that what it writes is noise, which a vector should
show. Last it is given reasonings that hold more words of each query's topic, which a vector should show too.

    python benchmarks/latents.py --output FOLDER --results benchmarks/results/latents.json
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

NOTE = "a tiny decoder and synthetic rows: a check of the mechanism, not a result"
TOPICS, TOPIC_WORDS = 48, 16
QUERY_WORDS, DOCUMENT_WORDS = 3, 6
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def topics(random: np.random.Generator) -> list[list[str]]:
    """Draw the words of each topic; no word belongs to two."""
    words: set[str] = set()
    while len(words) < TOPICS * TOPIC_WORDS:
        words.add("".join(random.choice(list(LETTERS), 5)))
    ordered = sorted(words)
    random.shuffle(ordered)
    return [ordered[i * TOPIC_WORDS : (i + 1) * TOPIC_WORDS] for i in range(TOPICS)]


def text(random: np.random.Generator, words: list[str], count: int) -> str:
    """Draw a text of a topic."""
    return " ".join(random.choice(words, count, replace=False))


def save_decoder(folder: Path, corpus: list[str]) -> None:
    """Save a tiny decoder with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    known = sorted({word for one in corpus for word in one.split()})
    extra = ["<|endoftext|>", "<|im_end|>", "[UNK]", "Reasoning", ":"]
    vocabulary = {token: number for number, token in enumerate([*extra, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    fast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
        model_max_length=2048,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def write_data(folder: Path, options: argparse.Namespace) -> list[str]:
    """Write training rows and a BEIR folder; return every text of the rows."""
    random = np.random.default_rng(0)
    held = topics(random)
    rows = []
    for number in range(options.rows):
        topic = number % TOPICS
        others = random.choice([i for i in range(TOPICS) if i != topic], 4, replace=False)
        rows.append(
            {
                "query": text(random, held[topic], QUERY_WORDS),
                "pos": [text(random, held[topic], DOCUMENT_WORDS)],
                "neg": [text(random, held[i], DOCUMENT_WORDS) for i in others],
            }
        )
    folder.mkdir(parents=True)
    (folder / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    beir = folder / "topics"
    (beir / "qrels").mkdir(parents=True)
    corpus = [(f"d{i}-{k}", text(random, held[i], DOCUMENT_WORDS)) for i in range(TOPICS) for k in range(10)]
    queries = [(f"q{i}-{k}", text(random, held[i], QUERY_WORDS)) for i in range(TOPICS) for k in range(2)]
    for name, texts in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": one}) for key, one in texts]
        (beir / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    thoughts = [
        {"query": one, "reasoning": text(random, held[int(key[1:].partition("-")[0])], DOCUMENT_WORDS)}
        for key, one in queries
    ]
    (folder / "helpful.jsonl.txt").write_text("".join(json.dumps(row) + "\n" for row in thoughts))
    labels = [
        f"{query}\t{document}\t1"
        for query, _ in queries
        for document, _ in corpus
        if query[1:].partition("-")[0] == document[1:].partition("-")[0]
    ]
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(labels) + "\n")
    return [" ".join(words) for words in held]


def recipe(model: Path, options: argparse.Namespace) -> Any:  # noqa: ANN401 - a Recipe
    """Return the recipe, the same for every number of latents but for the model."""
    from reasonembed_mteb.training.recipes import check_recipe

    content = {
        "name": "latents",
        "model": {"name": str(model), "template": ""},
        "lora": {"rank": 0},
        "loss": {"kind": "infonce", "temperature": 0.05},
        "data": {"query_tokens": 32, "document_tokens": 32, "missing_reasoning": "plain"},
        "batch": {"devices": 1, "group": 3, "queries": 16},
        "training": {
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "precision": "fp32",
            "checkpointing": False,
            "save_steps": 0,
            "seed": options.seed,
        },
    }
    return check_recipe(content, "latents")


def trained(count: int, output: Path, options: argparse.Namespace) -> Path:
    """Return the folder of a trained model with so many latents, and its head; made if it is not there."""
    from reasonembed_mteb.models.reason_embed import ReasonEmbed
    from reasonembed_mteb.reasoning.heads import keep_head, load_generator, on_backbone
    from reasonembed_mteb.reasoning.latents import add_latents
    from reasonembed_mteb.training.run import train

    done = output / f"latents-{count}"
    if done.is_dir():
        return done
    start = output / "bare"
    if count:
        start = output / f"start-{count}"
        if not start.is_dir():
            add_latents(str(output / "bare"), count, start)
    run = output / f"run-{count}"
    train(recipe(start, options), [output / "data" / "topics.jsonl"], run)
    model: Any = ReasonEmbed(str(run / "model"), device="cpu")
    generator = on_backbone(load_generator(str(start)), model[0].auto_model)
    part = output / f".latents-{count}"
    model.save_pretrained(str(part))
    keep_head(part, generator)
    part.rename(done)
    return done


def score(folder: Path, output: Path, tokens: list[int], *, given: bool = False) -> dict[str, float]:
    """Score a model with each amount of reasoning, and with the given ones; return scores by amount."""
    from reasonembed_mteb.evaluation.resolving import BeirFolders, resolve_model, resolve_tasks
    from reasonembed_mteb.evaluation.runner import RunOptions
    from reasonembed_mteb.reasoning.generation import Decoding
    from reasonembed_mteb.reasoning.running import ReasoningModel, ReasoningPlan
    from reasonembed_mteb.reasoning.sources import ReasoningFile

    found = {}
    options = RunOptions(output / "results", device="cpu", progress=False, store=output / "results/vectors")
    meta = resolve_model(str(folder))
    prompt = "{query} Reasoning : "
    plans = {str(count): ReasoningPlan(Decoding(count), prompt=prompt) if count else None for count in tokens}
    if given:
        source = ReasoningFile(output / "data" / "helpful.jsonl.txt")
        plans["given"] = ReasoningPlan(source=source, prompt=prompt)
    for name, plan in plans.items():
        model = ReasoningModel(meta, plan, output / "results" / "reasonings" / "generated")
        tasks = resolve_tasks([], [], BeirFolders([output / "data" / "topics"]))
        (outcome,) = model.run(tasks, options, print, NOTE)
        if outcome.score is None:
            raise RuntimeError(outcome.error)
        found[name] = outcome.score
    return found


def main() -> None:
    """Train, score, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 4, 16])
    parser.add_argument("--tokens", type=int, nargs="+", default=[0, 64, 256, 1024])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    output = options.output
    if not (output / "bare").is_dir():
        save_decoder(output / "bare", write_data(output / "data", options))
    scores = {count: score(trained(count, output, options), output, [0])["0"] for count in options.counts}
    most = max(options.counts)
    by_tokens = score(output / f"latents-{most}", output, options.tokens, given=True)
    print(f"\n{NOTE}\n\n| latent tokens K | nDCG@10 % |\n|---|---|")
    for count, one in scores.items():
        print(f"| {count} | {100 * one:.2f} |")
    print(f"\n| generated tokens N (K = {most}) | nDCG@10 % |\n|---|---|")
    for name, one in by_tokens.items():
        print(f"| {name} | {100 * one:.2f} |")
    if options.results is not None:
        chosen = {key: value for key, value in vars(options).items() if key not in ("output", "results")}
        content = {"note": NOTE, "latents": scores, "tokens": by_tokens, "options": chosen}
        options.results.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
