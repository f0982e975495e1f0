"""Encoding speed: ways to put the same texts through the same decoder, each in a fresh process.

Weights are random unless `--model` names a directory. Lengths are BRIGHT's: each subset's documents are
log-normal around its mean tokens, cut at `--max-tokens`, subsets mixed by size. Prints one table; `--json`
prints the rows. Ways take turns in every round, so that other work on the machine hits all alike; a way's
time is its fastest round.

    python benchmarks/encode.py --size 6x512 --documents 500 --rounds 2
    python benchmarks/encode.py --size 4B --documents 3000 --device cuda
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Documents and mean tokens of BRIGHT's subsets (mteb/BRIGHT c26703e; theoremqa_questions shares AoPS').
SUBSETS = {
    "biology": (57_359, 84),
    "earth_science": (121_249, 133),
    "economics": (50_220, 120),
    "psychology": (52_835, 118),
    "robotics": (61_961, 121),
    "stackoverflow": (107_081, 705),
    "sustainable_living": (60_792, 108),
    "leetcode": (413_932, 483),
    "pony": (7_894, 98),
    "aops": (188_002, 250),
    "theoremqa_theorems": (23_839, 355),
}
# Of the logarithm of a length; texts on the web are about so uneven.
SPREAD = 1.0
# layers, width, inner width, heads, key heads, head width, vocabulary: Qwen3's own, and one for a CPU.
SIZES = {
    "tiny": (2, 64, 128, 2, 1, 32, 512),
    "6x512": (6, 512, 1536, 8, 4, 64, 8_192),
    "0.6B": (28, 1024, 3072, 16, 8, 128, 151_936),
    "4B": (36, 2560, 9728, 32, 8, 128, 151_936),
    "8B": (36, 4096, 12_288, 32, 8, 128, 151_936),
}
WAYS = {
    "library": "padded, sorted, 32 rows (library default)",
    "rows8": "padded, sorted, 8 rows (FlagEmbedding's loop)",
    "padded": "padded, token budget",
    "packed": "packed",
    "compiled": "packed, compiled layers",
    "auto": "auto",
}


def make_texts(vocabulary: list[str], count: int, seed: int, max_tokens: int) -> list[str]:
    """Draw texts of BRIGHT's lengths from words that are one token each."""
    import numpy as np

    draw = np.random.default_rng(seed)
    sizes, means = np.array(list(SUBSETS.values()), dtype=float).T
    mean = means[draw.choice(len(means), count, p=sizes / sizes.sum())]
    lengths = draw.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD)
    lengths = np.clip(lengths, 1, max_tokens - 2).astype(int)
    return [" ".join(draw.choice(vocabulary, length)) for length in lengths]


def words_of(tokenizer: Any) -> list[str]:  # noqa: ANN401
    """Return words that a tokenizer has whole."""
    known = (token.lstrip("Ġ▁") for token in tokenizer.get_vocab())
    words = sorted({word for word in known if re.fullmatch("[a-z]{2,}[0-9]*", word)})
    return [w for w in words[:20_000] if len(tokenizer(f" {w}", add_special_tokens=False)["input_ids"]) == 1]


def save_seed(folder: Path, vocabulary: int) -> None:
    """Save a one-layer decoder whose tokenizer has one word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    words = {"<pad>": 0, "<unk>": 1} | {f"word{i}": i + 2 for i in range(vocabulary - 2)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=8192
    )
    fast.save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen3Config(vocab_size=len(words), num_key_value_heads=1, head_dim=32, **shape)
    Qwen3Model(config).save_pretrained(folder)


def load(options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Return a plain SentenceTransformer, with random weights of the size or a directory's own."""
    import torch
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb import ReasonEmbed

    dtype = getattr(torch, options.dtype)
    source = options.model or options.seed_folder
    model = ReasonEmbed(source, device=options.device, model_kwargs={"dtype": dtype})
    if not options.model:
        model[0].model = random_backbone(options, dtype)
        width = model[0].model.config.hidden_size
        model[1].embedding_dimension = model[1].pooling_output_dimension = width
    model.max_seq_length = min(options.max_tokens, model.max_seq_length or options.max_tokens)
    return SentenceTransformer(modules=list(model), device=options.device)


def random_backbone(options: argparse.Namespace, dtype: Any) -> Any:  # noqa: ANN401
    """Return a decoder with random weights, made where it is to be."""
    import torch
    import transformers

    family = getattr(options, "family", "Qwen3")
    layers, width, inner, heads, key_heads, head_dim, vocabulary = SIZES[options.size]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        max_position_embeddings=32_768,
        attn_implementation="sdpa",
    )
    torch.manual_seed(options.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(options.device):
            return getattr(transformers, f"{family}Model")(config).eval()
    finally:
        torch.set_default_dtype(before)


def flag_embedding_loop(model: Any, texts: list[str], rows: int) -> Any:  # noqa: ANN401
    """Encode as FlagEmbedding's encode_single_device does: sorted by length, a fixed number of rows."""
    import numpy as np
    import torch

    tokenizer, backbone = model.tokenizer, model[0].auto_model
    tokenised = []
    for start in range(0, len(texts), rows):
        found = tokenizer(texts[start : start + rows], truncation=True, max_length=model.max_seq_length)
        tokenised += [{"input_ids": ids} for ids in found["input_ids"]]
    order = np.argsort([-len(row["input_ids"]) for row in tokenised])
    vectors = []
    for start in range(0, len(texts), rows):
        batch = tokenizer.pad([tokenised[i] for i in order[start : start + rows]], return_tensors="pt")
        batch = batch.to(options_device(model))
        with torch.inference_mode():
            hidden = backbone(**batch, return_dict=True).last_hidden_state
        last = batch["attention_mask"].sum(1) - 1
        pooled = hidden[torch.arange(len(last), device=hidden.device), last]
        vectors.append(torch.nn.functional.normalize(pooled, dim=-1).cpu().float().numpy())
    return np.concatenate(vectors)[np.argsort(order)]


def options_device(model: Any) -> Any:  # noqa: ANN401
    """Return where a model is."""
    return next(model.parameters()).device


def encoder(way: str, model: Any, options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Return a function from texts to vectors."""
    from reasonembed_mteb.encoding import accelerate

    if way == "rows8":
        return lambda texts: flag_embedding_loop(model, texts, 8)
    if way != "library":
        attn = {"compiled": "packed"}.get(way, way)
        compiles = {"compiled": "on", "auto": "auto"}.get(way, "off")
        model = accelerate(model, attn=attn, compile=compiles, batch_tokens=options.batch_tokens)
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def peak_mib(device: str, *, reset: bool = False) -> float:
    """Return the peak of the device's memory, or of this process's on a CPU, since the last reset."""
    if device.startswith("cuda"):
        import torch

        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Encode by one way; save the vectors."""
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    model = load(options)
    texts = make_texts(words_of(model.tokenizer), options.documents, options.seed, options.max_tokens)
    lengths = np.array([len(model.tokenizer(text)["input_ids"]) for text in texts])
    lengths = np.minimum(lengths, model.max_seq_length)
    encode = encoder(options.way, model, options)
    started = time.perf_counter()
    # A GPU sees every shape before the clock starts; a CPU has nothing to warm but the libraries.
    encode(sorted(texts, key=len)[:4] if options.device == "cpu" else texts)
    warm_up = time.perf_counter() - started
    before = peak_mib(options.device, reset=True)
    started, worked = time.perf_counter(), time.process_time()
    vectors = encode(texts)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    np.save(Path(options.seed_folder) / f"{options.way}.npy", np.asarray(vectors, dtype=np.float32))
    return {
        "way": options.way,
        "seconds": seconds,
        "cpu_seconds": worked,
        "warm_up": warm_up,
        "tokens": int(lengths.sum()),
        "flops": flops(model[0].auto_model, lengths),
        "peak_mib": peak_mib(options.device),
        "above_mib": peak_mib(options.device) - before,
    }


def flops(backbone: Any, lengths: Any) -> float:  # noqa: ANN401
    """Return what the texts need at least: the layers' products, and attention below the diagonal."""
    config = backbone.config
    layers = getattr(backbone, "layers", None) or backbone.encoder.layer
    weights = sum(parameter.numel() for parameter in layers.parameters())
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    causal = 0.5 if hasattr(backbone, "layers") else 1.0
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head * causal
    return float(2 * weights * lengths.sum() + attention * (lengths.astype(float) ** 2).sum())


def matmul_ceiling(options: argparse.Namespace) -> dict[str, Any]:
    """Return the FLOP/s of one large product in the weights' precision."""
    import torch

    torch.set_num_threads(options.threads)
    size = 8192 if options.device.startswith("cuda") else 2048
    left = torch.randn(size, size, device=options.device, dtype=getattr(torch, options.dtype))
    best = 0.0
    for _ in range(8):
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ left
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return {"ceiling": best}


def run_child(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--seed-folder", options.seed_folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def report(rows: list[dict[str, Any]], ceiling: float, options: argparse.Namespace) -> None:
    """Print the table."""
    import numpy as np

    folder = Path(options.seed_folder)
    base = np.load(folder / f"{rows[0]['way']}.npy")
    for row in rows:
        vectors = np.load(folder / f"{row['way']}.npy")
        row["difference"] = float(np.abs(vectors - base).max())
        row["share"] = row["flops"] / row["seconds"] / ceiling
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps(rows))
        return
    print(
        f"{options.documents} documents, {rows[0]['tokens']:,} tokens; ceiling {ceiling / 1e12:.2f} TFLOP/s"
    )
    print("| way | seconds | CPU s | tokens/s | share | peak MiB | above | warm-up s | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [
            WAYS[row["way"]],
            f"{row['seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['tokens'] / row['seconds']:,.0f}",
            f"{100 * row['share']:.0f} %",
            f"{row['peak_mib']:,.0f}",
            f"{row['above_mib']:,.0f}",
            f"{row['warm_up']:.1f}",
            f"{row['difference']:.1e}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw speed and memory, a bar a way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.9 + 0.4 * len(rows)), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    names = [WAYS[row["way"]] for row in rows][::-1]
    for axes, values, title in (
        (speed, [row["tokens"] / row["seconds"] for row in rows][::-1], "tokens a second"),
        (memory, [row["peak_mib"] / 1024 for row in rows][::-1], "peak memory, GiB"),
    ):
        bars = axes.barh(names, values, color="#4c72b0")
        axes.bar_label(bars, labels=[f"{value:,.0f}" if value > 100 else f"{value:.1f}" for value in values])
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.15)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure every way asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="6x512", help="random Qwen3 of this size")
    parser.add_argument("--model", help="a directory instead")
    parser.add_argument("--ways", default="library,rows8,padded,packed", help=f"of {','.join(WAYS)}")
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--batch-tokens", type=int, help="budget; the device's own without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="bfloat16 on an accelerator, float32 on a CPU")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="PNG of the table; needs matplotlib")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--seed-folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    if options.way:
        print(json.dumps(matmul_ceiling(options) if options.way == "ceiling" else measure(options)))
        return
    if unknown := set(options.ways.split(",")) - set(WAYS):
        parser.error(f"unknown ways {sorted(unknown)}; known: {', '.join(WAYS)}")
    with tempfile.TemporaryDirectory() as folder:
        options.seed_folder = folder
        save_seed(Path(folder), SIZES[options.size][-1])
        rounds = [[run_child(way, options) for way in options.ways.split(",")] for _ in range(options.rounds)]
        ceiling = run_child("ceiling", options)["ceiling"]
        best = [min(turns, key=lambda row: row["seconds"]) for turns in zip(*rounds, strict=True)]
        report(best, ceiling, options)


if __name__ == "__main__":
    main()
