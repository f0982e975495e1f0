"""Tiny data in BRIGHT's layout, and tiny models to score on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

BIOLOGY, ECONOMICS = "ReasonEmbedBrightBiology", "ReasonEmbedBrightEconomics"
WORDS = [
    "cell",
    "leaf",
    "water",
    "light",
    "root",
    "soil",
    "price",
    "market",
    "trade",
    "money",
    "bank",
    "tax",
    "sun",
    "moon",
    "star",
    "salt",
    "acid",
    "iron",
    "gold",
]
TEMPLATE = "Instruct: {instruction}\nQuery: "
BIOLOGY_INSTRUCTION = "Given a Biology post, retrieve relevant passages that help answer the post."
ECONOMICS_INSTRUCTION = "Given an Economics post, retrieve relevant passages that help answer the post."


def write_subset(folder: Path, subset: str, queries: int = 6, documents: int = 40, last: str = "") -> None:
    """Write a subset in BRIGHT's layout; document i is the words i, i+1 and i+2."""
    from datasets import Dataset

    texts = [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(3)) for i in range(documents)]
    texts[-1] += last
    corpus = {"id": [f"d{i}" for i in range(documents)], "content": texts}
    examples = {
        "id": [f"q{i}" for i in range(queries)],
        "query": [" ".join(WORDS[i + k] for k in range(3)) for i in range(queries)],
        "excluded_ids": [["N/A"] if i else [f"d{len(WORDS)}"] for i in range(queries)],
        "gold_ids": [[f"d{i}"] for i in range(queries)],
    }
    for config, rows in (("documents", corpus), ("examples", examples)):
        file = folder / config / f"{subset}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows).to_parquet(str(file))


def save_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder: Path, *, head: bool = False, **options: Any) -> Path:
    """Save a one-layer random BERT: a sentence-transformers model, or a cross-encoder with `head`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    bare = folder if head else folder.with_name(f"{folder.name}-bare")
    config = BertConfig(
        vocab_size=save_tokenizer(bare),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=1,
    )
    (BertForSequenceClassification if head else BertModel)(config).save_pretrained(bare)
    if not head:
        SentenceTransformer(str(bare), device="cpu", **options).save_pretrained(str(folder))
    return folder
