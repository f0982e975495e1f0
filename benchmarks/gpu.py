"""The GPU path, proven in one command: correctness, encoding, search, training, and memory that runs out.

One process, on one CUDA card, with random weights in bf16 and BRIGHT's lengths. Parts come in the order of
their importance; the time of each is guessed from those before it, and what would not fit into `--minutes` is
left out and named. After each part `benchmarks/results/gpu-<card>.json` is replaced whole (`complete: false`
until the end), so that a run cut short still gives its parts. `--write-docs` writes the section of
docs/performance.md from the files of results; without a card the same code runs on tiny models.

    python benchmarks/gpu.py --minutes 9
    python benchmarks/gpu.py --write-docs
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import encode
import search
import train
from gpu_report import PAGE, RESULTS, Report, page_with, section, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Llama 3.1 8B, in encode.py's order.
encode.SIZES["Llama 8B"] = (32, 4096, 14_336, 32, 8, 128, 128_256)
# Parts are left out from the end; documents a size, so that one way takes some seconds on a card.
DOCUMENTS = {"0.6B": 3000, "4B": 1000, "8B": 600, "Llama 8B": 400, "tiny": 40}
ENCODING_WAYS = ("packed", "compiled", "library", "rows8", "padded")
TRAINING_WAYS = ("reference", "packed", "cached-packed", "ours")
# Seconds of a part, by its kind, before anything is known.
GUESSES = {
    "correctness": 60.0,
    "encode": 25.0,
    "search": 40.0,
    "train": 40.0,
    "memory": 15.0,
    "vllm": 120.0,
}


@dataclass
class Part:
    """Something to measure.

    Attributes:
        name: Such as ``encode 4B packed``; its first word is its kind.
        run: Measures, and returns rows.
        goes_to: The list of `Report` that takes them.
    """

    name: str
    run: Callable[[], list[dict[str, Any]]]
    goes_to: str

    @property
    def kind(self) -> str:
        """What the guess of its time goes by."""
        return self.name.split()[0]


class Bench:
    """One run: the clock, the report, and the model that is loaded."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Begin."""
        import torch

        from reasonembed_mteb.files import package_versions

        self.options = options
        self.started = time.monotonic()
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self.dtype = "bfloat16" if self.on_gpu else "float32"
        self.folder = Path(options.work)
        card = torch.cuda.get_device_name() if self.on_gpu else "cpu"
        self.report = Report(card, minutes=options.minutes, tiny=not self.on_gpu)
        self.report.date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        packages = (
            "reasonembed-mteb",
            "torch",
            "transformers",
            "sentence-transformers",
            "flash-attn",
            "vllm",
        )
        self.report.versions = package_versions(packages)
        name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
        self.file = options.output or RESULTS / f"gpu-{name}.json"
        self.took: dict[str, list[float]] = {}
        self.loaded: tuple[str, Any] | None = None

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.options.minutes * 60 - (time.monotonic() - self.started)

    def expected(self, part: Part) -> float:
        """Guess a part's seconds: as the longest of its kind and size took, or as its kind usually does."""
        size = next((size for size in DOCUMENTS if f" {size} " in f" {part.name} "), "")
        before = self.took.get(f"{part.kind} {size}") or self.took.get(part.kind)
        return max(before) if before else GUESSES[part.kind]

    def run(self, parts: list[Part]) -> None:
        """Measure part after part; replace the file of results after each."""
        self.report.ceiling = encode.matmul_ceiling(self.shape())["ceiling"]
        self.save()
        for part in parts:
            expected = self.expected(part)
            if expected > self.left():
                self.report.left_out.append(part.name)
                print(
                    f"{part.name}: left out ({expected:.0f} s expected, {self.left():.0f} s left)", flush=True
                )
                continue
            self.measure(part)
            self.save()
        self.report.complete = True
        self.save()

    def measure(self, part: Part) -> None:
        """Run one part; an error is kept, and the next part begins."""
        begun = time.monotonic()
        try:
            getattr(self.report, part.goes_to).extend(part.run())
        # Whatever a kernel or a compiler can raise: what the others give must not be lost for it.
        except Exception as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.report.failed[part.name] = f"{type(error).__name__}: {text[:300]}"
            self.unload()
        seconds = time.monotonic() - begun
        size = next((size for size in DOCUMENTS if f" {size} " in f" {part.name} "), "")
        for key in {part.kind, f"{part.kind} {size}".strip()}:
            self.took.setdefault(key, []).append(seconds)
        said = self.report.failed.get(part.name, "done")
        print(f"{part.name}: {said} in {seconds:.0f} s", flush=True)

    def save(self) -> None:
        """Replace the file of results whole."""
        from reasonembed_mteb.files import json_text, write_whole

        self.report.seconds = round(time.monotonic() - self.started, 1)
        write_whole(self.file, json_text(asdict(self.report)))

    # Models.

    def shape(self, size: str = "tiny", **changed: Any) -> argparse.Namespace:
        """Return what encode.py is told of a model."""
        import torch

        chosen = {
            "model": None,
            "size": size,
            "family": "Llama" if size.startswith("Llama") else "Qwen3",
            "seed_folder": str(self.folder / f"seed-{encode.SIZES[size][-1]}"),
            "device": self.device,
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "seed": 0,
            "max_tokens": 8192,
            "batch_tokens": None,
        }
        if not (self.folder / f"seed-{encode.SIZES[size][-1]}").is_dir():
            encode.save_seed(Path(chosen["seed_folder"]), encode.SIZES[size][-1])
        return argparse.Namespace(**chosen | changed)

    def model(self, size: str) -> Any:  # noqa: ANN401
        """Return the random model of a size, loaded once while its parts last."""
        if self.loaded is None or self.loaded[0] != size:
            self.unload()
            self.loaded = size, encode.load(self.shape(size))
        return self.loaded[1]

    def unload(self) -> None:
        """Let the loaded model go."""
        import torch

        self.loaded = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def texts(self, size: str, count: int, most: int, seed: int = 0) -> list[str]:
        """Draw texts with BRIGHT's lengths."""
        words = encode.words_of(self.model(size).tokenizer)
        return encode.make_texts(words, count, seed, most)


# (a) Correctness.


def correctness(bench: Bench, size: str) -> list[dict[str, Any]]:
    """Compare each way with an fp32 padded reference: vectors text by text, and rankings."""
    import torch

    documents, queries, most = (10_000, 100, 256) if bench.on_gpu else (200, 10, 64)
    model = bench.model(size)
    model.max_seq_length = most
    texts = bench.texts(size, documents + queries, most)
    long = bench.texts(size, 64 if bench.on_gpu else 4, 8192 if bench.on_gpu else 200, seed=1)
    found = {}
    for way in ways_here(bench, ("padded", "packed", "compiled", "flash")):
        vectors = encode_by(way, model, bench)(texts)
        model.max_seq_length = 8192
        found[way] = torch.as_tensor(vectors), torch.as_tensor(encode_by(way, model, bench)(long))
        model.max_seq_length = most
    # The same weights in fp32, without TF32: bf16 values are exact in it.
    torch.backends.cuda.matmul.allow_tf32 = False
    model.float()
    reference = torch.as_tensor(encode_by("padded", model, bench)(texts))
    model.max_seq_length = 8192
    long_reference = torch.as_tensor(encode_by("padded", model, bench)(long))
    bench.unload()
    return [
        {"size": size, "way": way, "documents": documents, "queries": queries, "max_tokens": most}
        | compared(vectors, reference, documents)
        | {"least_cosine_long": least_cosine(of_long, long_reference)}
        for way, (vectors, of_long) in found.items()
    ]


def least_cosine(vectors: Any, reference: Any) -> float:  # noqa: ANN401
    """Return the least cosine of a text's two vectors."""
    import torch

    pairs = torch.nn.functional.cosine_similarity(vectors.double(), reference.double())
    return float(pairs.min())


def compared(vectors: Any, reference: Any, documents: int) -> dict[str, Any]:  # noqa: ANN401
    """Return how far vectors and rankings are from the reference's; queries come after the documents."""
    import numpy as np

    found = rankings(vectors, documents)
    right = rankings(reference, documents)
    same = np.concatenate([found == right, np.zeros((len(found), 1), dtype=bool)], axis=1)
    first = same.argmin(axis=1) + 1
    overlap = [len(set(a) & set(b)) / len(a) for a, b in zip(found[:, :10], right[:, :10], strict=True)]
    return {
        "least_cosine": least_cosine(vectors, reference),
        "first_difference": int(first.min()),
        "median_first_difference": float(np.median(first)),
        "top_10_kept": float(np.mean(overlap)),
    }


def rankings(vectors: Any, documents: int, k: int = 100) -> Any:  # noqa: ANN401
    """Return the best documents of each query, ``(Q, k)``, ties by position."""
    import numpy as np

    scores = np.asarray(vectors[documents:].double() @ vectors[:documents].double().T)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


# (b) Encoding.


def ways_here(bench: Bench, ways: tuple[str, ...]) -> list[str]:
    """Return the ways that this machine knows."""
    from reasonembed_mteb.encoding.packing import flash_kernel

    flash = bench.on_gpu and flash_kernel() is not None
    return [way for way in ways if way != "flash" or flash]


def encode_by(way: str, model: Any, bench: Bench) -> Callable[[list[str]], Any]:  # noqa: ANN401
    """Return a function from texts to float vectors."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from reasonembed_mteb.encoding.plan import decoder_layers, restore_layers

    # Each way begins with the plain class: `accelerate` changes it.
    plain = SentenceTransformer(modules=list(model), device=bench.device)
    plain.max_seq_length = model.max_seq_length
    layers = decoder_layers(model[0].auto_model)
    if layers is not None:
        # The ways share their weights, and one of them compiles.
        restore_layers(layers)
    if way == "flash":
        from reasonembed_mteb.encoding import accelerate

        fast = accelerate(plain, attn="flash", compile="off")
        return lambda texts: np.asarray(fast.encode(texts, show_progress_bar=False), dtype=np.float32)
    inner = encode.encoder(way, plain, argparse.Namespace(batch_tokens=None))
    return lambda texts: np.asarray(inner(texts), dtype=np.float32)


def encoding(bench: Bench, size: str, way: str) -> list[dict[str, Any]]:
    """Measure one way of encoding one size."""
    import numpy as np

    model = bench.model(size)
    model.max_seq_length = 8192 if bench.on_gpu else 200
    texts = bench.texts(size, DOCUMENTS[size], model.max_seq_length)
    lengths = np.array([len(model.tokenizer(text)["input_ids"]) for text in texts])
    lengths = np.minimum(lengths, model.max_seq_length)
    run = encode_by(way, model, bench)
    begun = time.perf_counter()
    # Every shape is seen before the clock starts, and layers are compiled.
    run(texts if bench.on_gpu else texts[:4])
    warm_up = time.perf_counter() - begun
    encode.peak_mib(bench.device, reset=True)
    begun = time.perf_counter()
    run(texts)
    seconds = time.perf_counter() - begun
    return [figures(bench, size, way, lengths, encode.flops(model[0].auto_model, lengths), seconds, warm_up)]


def figures(
    bench: Bench,
    size: str,
    way: str,
    lengths: Any,  # noqa: ANN401
    flops: float,
    seconds: float,
    warm_up: float,
) -> dict[str, Any]:
    """Return a row of the table of encoding."""
    return {
        "size": size,
        "way": way,
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "seconds": seconds,
        "warm_up": warm_up,
        "tokens_a_second": float(lengths.sum() / seconds),
        "share": flops / seconds / bench.report.ceiling,
        "peak_mib": encode.peak_mib(bench.device),
    }


def by_vllm(bench: Bench, size: str) -> list[dict[str, Any]]:
    """Measure vLLM's pooling of the same texts: the directory is saved, and the card left to vLLM."""
    import numpy as np

    from reasonembed_mteb.models.engines import EngineChoice, make_engine, model_facts

    model = bench.model(size)
    texts = bench.texts(size, DOCUMENTS[size], 8192)
    folder = bench.folder / "vllm"
    model.save_pretrained(str(folder))
    facts = model_facts(model, str(folder), None)
    rows = facts.rows(texts)
    lengths = np.array([len(row.ids) for row in rows])
    flops = encode.flops(model[0].auto_model, lengths)
    # Nothing may hold the weights any longer: vLLM takes the card.
    facts = replace(facts, tokenize=None)
    del model
    bench.unload()
    begun = time.perf_counter()
    # On a CPU compiling takes minutes, for nothing.
    eager = {} if bench.on_gpu else {"enforce_eager": True}
    engine = make_engine(facts, EngineChoice("vllm", options=eager))
    try:
        engine.embed(rows)
        warm_up = time.perf_counter() - begun
        begun = time.perf_counter()
        engine.embed(rows)
        return [figures(bench, size, "vllm", lengths, flops, time.perf_counter() - begun, warm_up)]
    finally:
        engine.close()


# (c) Search.


def searching(bench: Bench, path: str) -> list[dict[str, Any]]:
    """Search as AoPS is searched: 188,002 documents of 4,096 dimensions, thousands excluded a query."""
    bench.unload()
    chosen = {
        "documents": 188_002,
        "dim": 4096,
        "queries": 111,
        "exclusions": 11_224,
        "top_k": 1000,
        "seed": 0,
    }
    if not bench.on_gpu:
        chosen |= {"documents": 3000, "dim": 32, "queries": 5, "exclusions": 50, "top_k": 100}
    row = search.measure(path, argparse.Namespace(**chosen))
    kept = {name: chosen[name] for name in ("documents", "dim", "queries", "exclusions")}
    return [kept | row]


# (d) Training.


def training(bench: Bench, size: str, way: str) -> list[dict[str, Any]]:
    """Measure a step of Redapter with LoRA, texts of 512 tokens at most."""
    folder = bench.folder / f"trained-{size}"
    if not folder.is_dir():
        bench.model(size).save_pretrained(str(folder))
    bench.unload()
    chosen = {
        "model": str(folder),
        "queries": 8,
        "group": 8,
        "tokens": 512,
        "median": 120,
        "steps": 3,
        "budget": 16_384,
        "lora": 32,
        "targets": "",
        "bf16": bench.on_gpu,
        "checkpointing": bench.on_gpu,
        "attention": "sdpa",
        "seed": 0,
    }
    if not bench.on_gpu:
        chosen |= {"queries": 2, "group": 2, "tokens": 48, "median": 12, "steps": 1, "lora": 4, "budget": 64}
    row = train.run_way(argparse.Namespace(**chosen), way)
    return [{"size": size} | {name: chosen[name] for name in ("queries", "group", "tokens")} | row]


# (e) Memory that runs out.


def running_out(bench: Bench, size: str) -> list[dict[str, Any]]:
    """Leave less memory than a batch needs, and encode: the budget is halved, the vectors stay."""
    import numpy as np

    from reasonembed_mteb.encoding import accelerate

    model: Any = accelerate(bench.model(size), attn="packed", compile="off")
    most = 4096 if bench.on_gpu else 200
    model.max_seq_length = most
    texts = bench.texts(size, 256 if bench.on_gpu else 800, most)
    asked = 1 << 19 if bench.on_gpu else 1 << 17
    model.batch_tokens = 8192 if bench.on_gpu else 512
    right = np.asarray(model.encode(texts, show_progress_bar=False), dtype=np.float32)
    model.batch_tokens = asked
    with little_memory(bench):
        found = np.asarray(model.encode(texts, show_progress_bar=False), dtype=np.float32)
    fitted = model.fitting_batch_tokens
    cosines = (found * right).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(right, axis=1)
    bench.unload()
    return [{"size": size, "asked": asked, "fitted": fitted, "least_cosine": float(cosines.min())}]


@contextlib.contextmanager
def little_memory(bench: Bench) -> Iterator[None]:
    """Leave this process little more memory than it has; a real allocation then fails."""
    import torch

    if bench.on_gpu:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 3 * 2**30) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    import resource

    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + 48 * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def plan(bench: Bench) -> list[Part]:
    """Return every part, the most important first."""
    sizes = ("0.6B", "4B", "8B", "Llama 8B") if bench.on_gpu else ("tiny",)
    main = sizes[min(1, len(sizes) - 1)]
    small = sizes[0]

    def encoded(size: str, ways: tuple[str, ...]) -> list[Part]:
        return [
            Part(f"encode {size} {way}", lambda size=size, way=way: encoding(bench, size, way), "encoding")  # type: ignore[misc]
            for way in ways
        ]

    def trained(size: str, ways: tuple[str, ...]) -> list[Part]:
        return [
            Part(f"train {size} {way}", lambda size=size, way=way: training(bench, size, way), "training")  # type: ignore[misc]
            for way in ways
        ]

    parts = [*encoded(main, ENCODING_WAYS[:3])]
    parts.append(Part(f"correctness {small}", lambda: correctness(bench, small), "correctness"))
    parts += trained(main, TRAINING_WAYS[:2])
    parts.append(Part(f"memory {small}", lambda: running_out(bench, small), "memory"))
    if small != main:
        parts += encoded(small, ENCODING_WAYS)
    parts += encoded(main, ENCODING_WAYS[3:])
    parts += [
        Part(f"search {path}", lambda path=path: searching(bench, path), "search")  # type: ignore[misc]
        for path in ("ours", "overfetch")
    ]
    parts += trained(main, TRAINING_WAYS[2:])
    for size in sizes[2:]:
        parts += encoded(size, ENCODING_WAYS)
    if importlib.util.find_spec("vllm") is not None:
        parts.append(Part(f"vllm {main}", lambda: by_vllm(bench, main), "encoding"))
    return parts


def main() -> None:
    """Measure, or write the section of the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument(
        "--output", type=Path, help="of results, instead of benchmarks/results/gpu-<card>.json"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the section of the page, and stop")
    options = parser.parse_args()
    if options.write_docs:
        from reasonembed_mteb.files import write_whole

        write_whole(PAGE, page_with(section(), PAGE.read_text(encoding="utf-8")))
        return
    import torch

    if not torch.cuda.is_available() and options.output is None:
        parser.error("no CUDA card here: give --output FILE to run the same code on tiny models")
    with tempfile.TemporaryDirectory() as options.work:
        bench = Bench(options)
        bench.run(plan(bench))
        print("\n" + tables(asdict(bench.report)))
        if bench.report.failed:
            sys.exit(1)


if __name__ == "__main__":
    main()
