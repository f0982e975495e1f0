"""What a worker does, in a plain process or on another machine: hold the model, encode blocks, write them."""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError, one_line, unknown_name
from reasonembed_mteb.files import json_hash
from reasonembed_mteb.store.corpora import CORPUS_DTYPES, BlockFile, CorpusFolder, EncodedBlock, done_blocks
from reasonembed_mteb.store.places import Place

if TYPE_CHECKING:
    from reasonembed_mteb.distributed.inputs import Block

_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory")
_GIB = 1 << 30


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it reads texts: the same on every machine.

    Attributes:
        name: As `reasonembed_mteb.evaluation.resolving.resolve_model` takes it.
        template: Of an instruction, for models that MTEB does not know.
        no_instruction: Whether such a model gets no prompt.
        truncate_dim: Keep the first dimensions of each vector.
        task: An MTEB task whose length and prompts hold; empty for the model's own.
        instruction: Put before each query, where there is no task.
        max_length: Tokens of a text; None for the model's own.
    """

    name: str
    template: str | None = None
    no_instruction: bool = False
    truncate_dim: int | None = None
    task: str = ""
    instruction: str = ""
    max_length: int | None = None

    @property
    def salt(self) -> str:
        """What decides documents' vectors beside the weights, which name the folder."""
        # A template is for queries, but a model that gets one leaves its own prompts, a document's too.
        return json_hash([self.task, self.max_length, self.template is not None, self.no_instruction])


@dataclass(frozen=True)
class Speed:
    """How a worker computes.

    Attributes:
        device: Such as ``cuda``; None lets torch choose.
        threads: Of a worker, on the CPU.
        batch_tokens: Tokens of an encoding batch; None for the device's own.
        attn: See `reasonembed_mteb.encoding.accelerate`.
        compile_layers: ``on`` or ``off``; None for what suits the device. Never by what was encoded before,
            which would be another thing on each worker.
    """

    device: str | None = None
    threads: int = 1
    batch_tokens: int | None = None
    attn: str = "auto"
    compile_layers: str | None = None


@dataclass(frozen=True)
class EncodeJob:
    """What a worker needs to know.

    Attributes:
        model: Which model.
        speed: How it computes.
        store: Path or address of the store.
        dtype: How vectors are kept, see `reasonembed_mteb.store.corpora`.
        block_tokens: Estimated tokens of a block.
    """

    model: ModelChoice
    speed: Speed
    store: str
    dtype: str = "auto"
    block_tokens: int = 1 << 18

    def check(self) -> None:
        """Refuse what no worker could do, before any is started.

        Raises:
            ReasonEmbedError: If an option has no such value.
        """
        from reasonembed_mteb.encoding.plan import check_options

        check_options(self.speed.attn, self.speed.batch_tokens, self.speed.compile_layers or "off")
        if self.dtype not in CORPUS_DTYPES:
            raise unknown_name("dtype", self.dtype, CORPUS_DTYPES)
        encode_call(self.model, "document")

    @property
    def about(self) -> dict[str, Any]:
        """What the corpus' manifest says of it."""
        return {"model": asdict(self.model), "block_tokens": self.block_tokens, "threads": self.speed.threads}


@dataclass(frozen=True)
class BlockDone:
    """What a worker says of a block.

    Attributes:
        key: Of the block.
        file: Where it is.
        folder: Name of the model's folder.
        dimension: Of the vectors.
        computed: Whether it was computed now; else it was there.
        tokens: That the model read for it.
        seconds: That it took.
        host: Which machine.
    """

    key: str
    file: BlockFile
    folder: str
    dimension: int
    computed: bool
    tokens: int
    seconds: float
    host: str


class BlockEncoder:
    """A loaded model that encodes and writes blocks.

    Args:
        job: What to do.

    Raises:
        ReasonEmbedError: If the model cannot be loaded, does not fit or gives no dense vectors, or the store
            cannot be written.
    """

    def __init__(self, job: EncodeJob) -> None:
        """Load the model and look what is done already."""
        from reasonembed_mteb.store.encoder import model_fingerprint, storable

        self._job = job
        self.model = load_encoder(job.model, job.speed)
        if not storable(self.model):
            msg = f"{job.model.name} gives no single dense vector a text, so no store can hold it"
            raise ReasonEmbedError(msg)
        self._folder = CorpusFolder(Place(job.store), model_fingerprint(self.model), job.dtype)
        with on_this_machine():
            self._folder.prepare()
        self._done = done_blocks(self._folder.place)
        self._call = encode_call(job.model, "document")

    def __call__(self, block: Block) -> BlockDone:
        """Encode and write a block, unless it is there.

        Args:
            block: Its documents.

        Raises:
            ReasonEmbedError: If a text cannot be encoded or the block cannot be written.
        """
        started = time.perf_counter()
        if block.key in self._done:
            name, dtype, size, checksum = self._done[block.key]
            file = BlockFile(name, len(block.documents), dtype, size, checksum)
            return self._said(block, file, computed=False, tokens=0, started=started)
        encoded = self._encoded(block)
        with on_this_machine():
            file = self._folder.write(block.key, encoded)
        tokens = int(encoded.tokens.clip(min=0).sum())
        return self._said(block, file, computed=True, tokens=tokens, started=started)

    def _encoded(self, block: Block) -> EncodedBlock:
        from reasonembed_mteb.store.encoder import encode_columns, text_context

        ids, texts = (list(values) for values in zip(*((d.id, d.text) for d in block.documents), strict=True))
        context = text_context(self.model, self._call)
        vectors, tokens = encode_columns(self.model, {"id": ids, "text": texts, "body": texts}, self._call)
        keys = context.choose(*context.keys(texts), tokens)
        return EncodedBlock(ids, keys, tokens, vectors)

    def _said(
        self, block: Block, file: BlockFile, *, computed: bool, tokens: int, started: float
    ) -> BlockDone:
        return BlockDone(
            key=block.key,
            file=file,
            folder=self._folder.name,
            dimension=self._dimension(),
            computed=computed,
            tokens=tokens,
            seconds=time.perf_counter() - started,
            host=socket.gethostname(),
        )

    def _dimension(self) -> int:
        inner = self.model.model
        return int(inner.truncate_dim or inner.get_embedding_dimension())


def encode_call(choice: ModelChoice, side: str) -> dict[str, Any]:
    """Return the arguments with which MTEB would have texts encoded.

    Args:
        choice: Whose task or instruction decides.
        side: ``query`` or ``document``.

    Raises:
        UnknownNameError: If there is no such task; the nearest is named.
    """
    from mteb.types import PromptType

    from reasonembed_mteb.evaluation.limits import asked_as
    from reasonembed_mteb.evaluation.resolving import resolve_tasks
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.retrieval.search import search_metadata

    register()
    task = asked_as(resolve_tasks([], [choice.task])[0]) if choice.task else None
    return {
        "task_metadata": task or search_metadata("Corpus", choice.instruction),
        "hf_split": "test",
        "hf_subset": "default",
        "prompt_type": PromptType(side),
        "show_progress_bar": False,
    }


def load_encoder(choice: ModelChoice, speed: Speed) -> Any:  # noqa: ANN401 - mteb's EncoderProtocol
    """Load a model as a run does, to encode by token budget.

    Args:
        choice: Which.
        speed: How it computes.

    Raises:
        ReasonEmbedError: If it cannot be loaded, or does not fit.
    """
    import torch

    from reasonembed_mteb.evaluation.resolving import Variants, resolve_models
    from reasonembed_mteb.evaluation.variants import check_devices, load_variant, speed_up
    from reasonembed_mteb.plugin import register
    from reasonembed_mteb.retrieval.lengths import current_length, sized_models

    register()
    torch.set_num_threads(speed.threads)
    devices = check_devices(speed.device)
    (meta,) = resolve_models(
        [choice.name],
        template=choice.template,
        no_instruction=choice.no_instruction,
        variants=Variants(truncate_dim=choice.truncate_dim),
    )
    on_gpu = devices[0].startswith("cuda") if devices else torch.cuda.is_available()
    check_memory(choice.name, on_gpu=on_gpu)
    try:
        model = load_variant(meta, device=devices[0] if devices else None)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(text in str(error).lower() for text in _MEMORY_MESSAGES):
            raise _does_not_fit(choice.name, one_line(error)) from error
        raise
    compiled = speed.compile_layers or ("on" if on_gpu else "off")
    speed_up(model, batch_tokens=speed.batch_tokens, attn=speed.attn, compile_layers=compiled)
    most = choice.max_length or 0
    own = current_length(model) or most
    for inner in sized_models(model) if most else ():
        inner.max_seq_length = min(own, most)
    return model


def check_memory(name: str, *, on_gpu: bool) -> None:
    """Refuse a model whose weights alone are larger than the memory that is free.

    A process that takes too much is killed without a word, and would be started again and again.

    Args:
        name: A directory; nothing is known of other names.
        on_gpu: Whether it goes onto one.

    Raises:
        ReasonEmbedError: If it does not fit; the message names the machine and both sizes.
    """
    needed = _weights_bytes(Path(name).expanduser(), widened=not on_gpu)
    free = _free_bytes(on_gpu=on_gpu)
    if free is not None and needed > free:
        raise _does_not_fit(name, f"{needed / _GIB:,.1f} GiB of weights, {free / _GIB:,.1f} GiB free")


def _weights_bytes(folder: Path, *, widened: bool) -> int:
    """Return the memory that a directory's weights take; a CPU holds them in float32."""
    import json

    config = folder / "config.json"
    if not config.is_file():
        return 0
    said = json.loads(config.read_text(encoding="utf-8"))
    halved = (said.get("dtype") or said.get("torch_dtype")) in ("bfloat16", "float16")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return 2 * size if widened and halved else size


def _free_bytes(*, on_gpu: bool) -> int | None:
    import torch

    if on_gpu:
        return int(torch.cuda.mem_get_info()[0])
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return next((int(line[1]) << 10 for line in lines if line[0] == "MemAvailable:"), None)


def _does_not_fit(name: str, how: str) -> ReasonEmbedError:
    return ReasonEmbedError(
        f"{name} does not fit on {socket.gethostname()} ({how}); give larger machines, fewer workers each "
        "or, where it has several, more GPUs a worker"
    )


class on_this_machine:  # noqa: N801 - used as a function
    """Name the machine in an error about writing: of many, one has a full disk."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Name the machine, if there was an error of ours."""
        if isinstance(error, ReasonEmbedError):
            full = getattr(error.__cause__, "errno", None) == errno.ENOSPC
            what = "the disk is full there; what is written stays" if full else "what is written stays"
            msg = f"{error} (on {socket.gethostname()}: {what}, and the same command goes on with it)"
            raise ReasonEmbedError(msg) from error
