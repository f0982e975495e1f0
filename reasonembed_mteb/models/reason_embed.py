"""ReasonEmbed: a SentenceTransformer that loads decoders rightly and knows the tasks' instructions."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from reasonembed_mteb.encoding.fast import FastSentenceTransformer
from reasonembed_mteb.encoding.packing import is_causal
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.folders import ADAPTER_CONFIG, Adapter, may_be_decoder, read_adapter
from reasonembed_mteb.models.instructions import (
    DOCUMENT_NAMES,
    rule_of_prompts,
    task_prompts,
    warn_without_instruction,
)
from reasonembed_mteb.models.saving import READERS, add_older_forms
from reasonembed_mteb.models.special_tokens import settle_special_tokens, warn_of_special_tokens
from reasonembed_mteb.retrieval.rows import find

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# The official evaluation's length on BRIGHT, for queries and documents alike (PROTOCOL section 1).
MAX_TOKENS = 8192
# Reserved tokens that decoder tokenizers without a pad token hold for such a purpose.
_PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<unk>")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

_CARD = """
## Instructions and lengths

Queries have an instruction before them, here `{prefix}` for {task}; {documents}.
The `prompts` in `config_sentence_transformers.json` hold the full prefix of every BRIGHT, BRIGHT-Pro and
R2MED task by its MTEB name, so that `mteb` finds them by itself. A directory has one length, here {length}
tokens (BRIGHT's protocol is 8192); R2MED's protocol is 512 tokens, which the package `reasonembed-mteb` sets.

Reads with {readers}: configuration, tokenizer and module names are written for all of them.
"""
_CARD_TITLE = "## Instructions and lengths"
_CARD_TASK = "ReasonEmbedBrightBiology"
_CARD_USAGE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = ["Why do cats purr?"]
documents = ["Purring promotes bone growth."]
# The prompt of your task; `model.prompts` lists them.
query_vectors = model.encode_query(queries, prompt_name="{task}-query")
document_vectors = model.encode_document(documents)
print(model.similarity(query_vectors, document_vectors))
```"""
# What sentence-transformers' own card shows: sentences without a prompt.
_GENERIC_USAGE = re.compile(r"```python\nfrom sentence_transformers import .*?\n```", re.DOTALL)


class ReasonEmbed(FastSentenceTransformer):
    """A SentenceTransformer for decoder embedders with an instruction before each query.

    The constructor is `SentenceTransformer`'s. A directory with ``modules.json`` loads as it is. A bare
    decoder checkpoint (Qwen2, Qwen3, Llama, Mistral, ...) gets the modules that ReasonEmbed was trained
    with: text only, whatever chat template the tokenizer has; the last token's vector; unit length. Its
    tokenizer pads on the right, has a pad token, and adds EOS and BOS as under transformers 4. A LoRA
    adapter's folder loads on its base.

    An empty text for which the tokenizer gives no token at all has a zero vector. Texts are encoded by token
    budget, packed where that is known; see `FastSentenceTransformer` for the options.

    Example:
        >>> from reasonembed_mteb import ReasonEmbed  # doctest: +SKIP
        >>> model = ReasonEmbed("hanhainebula/reason-embed-qwen3-4b-0928")  # doctest: +SKIP
        >>> queries = model.encode_query(["Why do cats purr?"], task="biology")  # doctest: +SKIP
        >>> documents = model.encode_document(["Purring promotes bone growth."])  # doctest: +SKIP
        >>> model.similarity(queries, documents)  # doctest: +SKIP
    """

    def __init__(self, model_name_or_path: str | None = None, **kwargs: Any) -> None:
        """Load a model; see `SentenceTransformer` for the arguments.

        Args:
            model_name_or_path: Hub name or directory.
            **kwargs: `SentenceTransformer`'s keyword arguments.

        Raises:
            ReasonEmbedError: If a local directory has no tokenizer, or pickled weights.
        """
        if model_name_or_path is not None and Path(model_name_or_path).is_dir():
            _check_folder(Path(model_name_or_path))
        self._built_modules = False
        super().__init__(model_name_or_path, **kwargs)
        if not self._built_modules and model_name_or_path is not None and self.pools_last_token:
            warn_of_special_tokens(self.tokenizer, str(model_name_or_path))
        if self._built_modules:
            # As a saved directory would: `mteb.evaluate` of this object finds each task's prompt by name.
            self.prompts = dict[str, str | None](self.task_prompts())

    def _load_default_modules(
        self, model_name_or_path: str, *args: Any, **kwargs: Any
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """Build the modules of a bare checkpoint; see the class."""
        signature = inspect.signature(SentenceTransformer._load_default_modules)
        options = signature.bind(self, model_name_or_path, *args, **kwargs).arguments
        del options["self"]
        adapter = _find_adapter(options)
        if adapter is not None:
            return self._load_adapter(adapter, options)
        transformer = self._load_decoder(options)
        if transformer is None:
            loaded, config = super()._load_default_modules(**options)
            modules = list(loaded.values()) if isinstance(loaded, dict) else loaded
            _say_assumed(model_name_or_path, modules)
            return modules, config
        self._built_modules = True
        pooling = Pooling(transformer.get_embedding_dimension(), "lasttoken")
        modules = [transformer, pooling, Normalize()]
        _say_assumed(model_name_or_path, modules)
        return modules, {}

    def _load_decoder(self, options: dict[str, Any]) -> Transformer | None:
        """Load a bare checkpoint as a text decoder; None if it turns out to be no decoder."""
        given = _loading_options(options)
        name = options["model_name_or_path"]
        cache_folder = options.get("cache_folder")
        if not may_be_decoder(name, given["config_kwargs"], cache_folder):
            return None
        if self.backend == "torch":
            given["model_kwargs"].setdefault("use_safetensors", True)
        transformer: Transformer = Transformer(
            name,
            cache_dir=cache_folder,
            backend=self.backend,
            # Without this the tokenizer's chat template would be applied to every text.
            modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            module_output_name="token_embeddings",
            **given,
        )
        # Other backends have no module to ask.
        if self.backend == "torch" and not is_causal(transformer.auto_model):
            return None
        _prepare_tokenizer(transformer.tokenizer)
        settle_special_tokens(transformer.tokenizer, name, given["processor_kwargs"])
        own = transformer.max_seq_length
        transformer.max_seq_length = min(MAX_TOKENS, own) if own else MAX_TOKENS
        return transformer

    def _load_adapter(
        self, adapter: Adapter, options: dict[str, Any]
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """Load an adapter's base with its modules, and the adapter into it."""
        name = options["model_name_or_path"]
        if adapter.task == "SEQ_CLS":
            msg = (
                f"{name} is an adapter of a cross-encoder (SEQ_CLS), whose score would be lost: give an "
                "adapter of an embedder, or merge it into its base and load that as a CrossEncoder"
            )
            raise ReasonEmbedError(msg)
        try:
            loaded, config = self._load_modules(
                **(options | {"model_name_or_path": adapter.base, "revision": adapter.revision})
            )
        except OSError as error:
            reason = str(error).strip().splitlines()[0]
            msg = (
                f"the base model {adapter.base} of the adapter {name} cannot be loaded ({reason}): "
                "download the base, correct base_model_name_or_path in adapter_config.json, or merge it into "
                "its base and give that"
            )
            raise ReasonEmbedError(msg) from error
        modules = list(loaded.values()) if isinstance(loaded, dict) else loaded
        transformer: Any = modules[0]
        shared = {key: options[key] for key in ("revision", "token") if options.get(key) is not None}
        transformer.auto_model.load_adapter(name, **shared)
        transformer.auto_model.eval()
        if self._built_modules:
            _take_tokenizer(transformer, Path(name), _loading_options(options)["processor_kwargs"])
        return modules, config

    def encode_query(
        self,
        *args: Any,
        task: str | None = None,
        instruction: str | None = None,
        **kwargs: Any,
    ) -> Any:  # noqa: ANN401 - SentenceTransformer's own return type depends on its arguments
        """Encode queries, each after its task's instruction.

        Args:
            *args: `SentenceTransformer.encode_query`'s arguments: one query or several, and so on.
            task: An MTEB task name (ours, or MTEB's own BRIGHT, BRIGHT-Pro and R2MED tasks) or a subset
                such as ``"biology"``. It never reaches sentence-transformers' Router, which is told
                ``"query"`` as ever.
            instruction: An instruction of your own, one sentence; empty for none.
            **kwargs: `SentenceTransformer.encode_query`'s keyword arguments.

        Returns:
            Unit vectors ``(N, dim)``, or ``(dim,)`` for one query.

        Raises:
            UnknownNameError: If the task is not known; the nearest is named.
            ReasonEmbedError: If more than one of task, instruction and prompt is given.
        """
        prompted = any(value is not None for value in args[1:3]) or any(
            kwargs.get(name) is not None for name in ("prompt", "prompt_name")
        )
        if (task is not None) + (instruction is not None) + prompted > 1:
            msg = "give one of task=, instruction= and prompt=/prompt_name=, not several"
            raise ReasonEmbedError(msg)
        row = find(task) if task is not None else None
        sentence = row.instruction if row is not None else instruction
        if sentence is not None:
            rule = rule_of_prompts(self.prompts)
            kwargs["prompt"] = rule.instructed(sentence, row.name if row is not None else None)
        return super().encode_query(*args, **kwargs)

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        """Choose the prompt as the library does, and say once where queries would get none."""
        resolved: str | None = super()._resolve_prompt(prompt, prompt_name)
        is_document = prompt_name in DOCUMENT_NAMES
        # An empty prompt that was given is a choice; an empty one behind a name is none.
        if prompt is None and not resolved and not is_document and self.pools_last_token:
            warn_without_instruction(self)
        return resolved

    @property
    def pools_last_token(self) -> bool:
        """Whether this is a decoder embedder, to which the tasks' instructions belong."""
        return any(isinstance(module, Pooling) and module.pooling_mode == "lasttoken" for module in self)

    def task_prompts(self) -> dict[str, str]:
        """Return the prompts that a saved directory holds: every task's full prefix, by MTEB's keys."""
        return task_prompts() | {k: v for k, v in self.prompts.items() if v is not None}

    def _get_model_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super()._get_model_config()
        if self.pools_last_token:
            config["prompts"] = self.task_prompts()
        return config

    def save(
        self,
        path: str,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Save a plain sentence-transformers directory, which loads without this package.

        Its ``prompts`` hold every task's full prefix by MTEB task name.

        Args:
            path: The directory; None saves nothing, as in sentence-transformers.
            model_name: Name for the card.
            create_model_card: Whether a ``README.md`` is written.
            train_datasets: Names of the data sets for the card.
            safe_serialization: Must be True: only safetensors are written.

        Raises:
            ReasonEmbedError: If pickled weights are asked for.
        """
        if not safe_serialization:
            msg = "only safetensors are written; leave safe_serialization at True"
            raise ReasonEmbedError(msg)
        self._forget_last_call()
        super().save(path, model_name, create_model_card, train_datasets)
        if path is not None:
            add_older_forms(Path(path), self)

    def _forget_last_call(self) -> None:
        """Take the length and the padding of the last call out of the tokenizer, whose file would keep them.

        transformers sets both at each call; whoever reads ``tokenizer.json`` alone would be cut there.
        """
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if hasattr(backend, "no_truncation"):
            backend.no_truncation()
            backend.no_padding()

    def _create_model_card(self, path: str, *args: Any, **kwargs: Any) -> None:
        # The library encodes an example for the card, without an instruction.
        warned, self._warned_bare = vars(self).get("_warned_bare", False), True
        super()._create_model_card(path, *args, **kwargs)
        self._warned_bare = warned
        card = Path(path) / "README.md"
        if not self.pools_last_token or not card.is_file():
            return
        text = card.read_text(encoding="utf-8")
        if _CARD_TITLE not in text:
            usage = _CARD_USAGE.format(task=_CARD_TASK)
            text = _GENERIC_USAGE.sub(lambda _: usage, text, count=1)
            card.write_text(text.rstrip("\n") + "\n" + self._card_section(), encoding="utf-8")

    def _card_section(self) -> str:
        prompts = self.task_prompts()
        before = prompts.get("document")
        return _CARD.format(
            # A line break shows as \\n, as in Python.
            prefix=repr(prompts[f"{_CARD_TASK}-query"])[1:-1],
            task=f"`{_CARD_TASK}`",
            documents=f"documents have `{before}`" if before else "documents are encoded as they are",
            length=self.max_seq_length,
            readers=READERS,
        )


def _with_own_options(method: Any, *names: str) -> inspect.Signature:  # noqa: ANN401 - a function
    """Return the parent's signature with keyword options of our own."""
    parent = inspect.signature(method)
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
        for name in names
    ]
    *before, rest = parent.parameters.values()
    return parent.replace(parameters=[*before, *own, rest])


# Tools that read the signature (and sentence-transformers' own re-loading) see the parent's.
ReasonEmbed.__init__.__signature__ = inspect.signature(SentenceTransformer.__init__)  # type: ignore[attr-defined]
ReasonEmbed.encode_query.__signature__ = _with_own_options(  # type: ignore[attr-defined]
    SentenceTransformer.encode_query, "task", "instruction"
)


def _loading_options(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the three groups of a `Transformer`'s keyword arguments, each with what they share."""
    shared = {
        name: options[name]
        for name in ("token", "revision", "trust_remote_code", "local_files_only")
        if options.get(name) is not None
    }
    groups = ("model_kwargs", "processor_kwargs", "config_kwargs")
    return {name: shared | (options.get(name) or {}) for name in groups}


def _find_adapter(options: dict[str, Any]) -> Adapter | None:
    from transformers.utils.peft_utils import find_adapter_config_file

    file = find_adapter_config_file(
        str(options["model_name_or_path"]),
        cache_dir=options.get("cache_folder"),
        token=options.get("token"),
        revision=options.get("revision"),
        local_files_only=bool(options.get("local_files_only")),
    )
    return None if file is None else read_adapter(Path(file))


def _take_tokenizer(transformer: Any, folder: Path, processor_kwargs: dict[str, Any]) -> None:  # noqa: ANN401
    """Read texts by the tokenizer in an adapter's folder, where there is one."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return
    length = transformer.max_seq_length
    tokenizer = AutoTokenizer.from_pretrained(folder, **processor_kwargs)
    _prepare_tokenizer(tokenizer)
    settle_special_tokens(tokenizer, str(folder), processor_kwargs)
    transformer.processor = tokenizer
    transformer.max_seq_length = length


def _say_assumed(name: str, modules: list[nn.Module]) -> None:
    """Say which modules a checkpoint got that brings none."""
    modes = [str(module.pooling_mode) for module in modules if isinstance(module, Pooling)]
    pooling = f"{modes[0]} pooling" if modes else "the library's own modules"
    length = " and unit length" if isinstance(modules[-1], Normalize) else ""
    logger.warning("%s has no modules.json: assuming %s%s", name, pooling, length)


def _prepare_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Pad on the right with a token that the vocabulary has; change nothing else."""
    if tokenizer is None:
        msg = "the checkpoint has no text tokenizer: save one in the same folder as the weights"
        raise ReasonEmbedError(msg)
    # Right: GradCache trims trailing padding only, and a causal mask then needs no padding mask.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is not None:
        return
    known = tokenizer.get_vocab()
    pad = next((token for token in _PAD_CANDIDATES if token in known), tokenizer.eos_token)
    if pad is None:
        msg = "the tokenizer has neither a pad token nor an EOS token: set tokenizer.pad_token and save it"
        raise ReasonEmbedError(msg)
    tokenizer.pad_token = pad


def _check_folder(folder: Path) -> None:
    """Say plainly that a directory with transformers weights in its root cannot be loaded."""
    if (folder / ADAPTER_CONFIG).is_file():
        read_adapter(folder / ADAPTER_CONFIG)
    has_weights = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    if not has_weights and any(folder.glob("pytorch_model*.bin")):
        msg = f"{folder} has pickled weights, which may run code: save the model again as safetensors"
        raise ReasonEmbedError(msg)
    if has_weights and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        msg = f"{folder} has weights but no tokenizer (tokenizer.json): save the tokenizer in the same folder"
        raise ReasonEmbedError(msg)
