"""Latent tokens: K tokens after each text, from whose last one a decoder's vector is read.

The layout is our own: the tokenizer's post-processor appends them, so that a saved model is a plain
sentence-transformers directory, and whatever reads ``tokenizer.json`` appends them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.encoding.tokenizing import special_tokens
from reasonembed_mteb.errors import ReasonEmbedError, check_seed
from reasonembed_mteb.files import replacing_folder
from reasonembed_mteb.models.special_tokens import (
    LATENT_NAME,
    LATENT_PATTERN,
    change_post_processor,
    surrounded,
)
from reasonembed_mteb.reasoning.heads import keep_head, load_head

if TYPE_CHECKING:
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reasonembed_mteb.models.reason_embed import ReasonEmbed

_PROBE = "a"
# Spread of the noise on a new row, relative to the root mean square of EOS's row: the rows differ, and each
# is still read much as EOS is.
NOISE = 0.02
# More tokens than anyone reads a vector through; a larger count is a slip.
_MOST = 4096


@dataclass(frozen=True)
class LatentTokens:
    """The latent tokens that a tokenizer ends every text with.

    Attributes:
        ids: Their token ids ``(K,)`` in order; empty for a model without any.
    """

    ids: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.ids)

    def positions(self, input_ids: Tensor) -> Tensor:
        """Return where the latents stand in rows of tokens, padded or followed by other tokens.

        Args:
            input_ids: ``(B, T)``; each row holds every latent exactly once.

        Returns:
            ``(B, K)`` int64.

        Raises:
            ReasonEmbedError: If a row lacks a latent or repeats one.
        """
        import torch

        wanted = torch.tensor(self.ids, dtype=input_ids.dtype, device=input_ids.device)
        found = input_ids[:, :, None] == wanted
        counts = found.sum(dim=1)
        if not bool((counts == 1).all()):
            row = int((counts != 1).any(dim=1).nonzero()[0])
            msg = (
                f"row {row} of the batch holds the {self.count} latent tokens {counts[row].tolist()} times, "
                "and must hold each once: tokenise a text once, and put no latent token into it"
            )
            raise ReasonEmbedError(msg)
        return found.int().argmax(dim=1)


def find_latents(tokenizer: PreTrainedTokenizerBase) -> LatentTokens:
    """Return the latent tokens with which a tokenizer ends each text.

    Args:
        tokenizer: Of a loaded model (``model.tokenizer``), or from ``AutoTokenizer``.

    Raises:
        ReasonEmbedError: If the vocabulary holds latent tokens that are not appended.
    """
    known = latent_ids(tokenizer)
    ending = tokenizer("", verbose=False)["input_ids"] if known else []
    if tuple(ending[len(ending) - len(known) :]) != known:
        msg = (
            f"the vocabulary holds {len(known)} latent tokens, but texts do not end in them: load the "
            "tokenizer.json that `reasonembed latents add` wrote"
        )
        raise ReasonEmbedError(msg)
    return LatentTokens(known)


def latent_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids of the latent tokens in a vocabulary, appended to texts or not.

    Args:
        tokenizer: Any.
    """
    numbered = {
        int(match[1]): place
        for token, place in tokenizer.get_added_vocab().items()
        if (match := LATENT_PATTERN.fullmatch(token))
    }
    return tuple(numbered[number] for number in sorted(numbered))


def text_frame(tokenizer: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401 - a transformers tokenizer
    """Return the ids that a tokenizer puts before and after a text: BOS, and EOS or latents or both.

    Args:
        tokenizer: Any.
    """
    whole: list[int] = tokenizer(_PROBE)["input_ids"]
    bare: list[int] = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def context_length(model: SentenceTransformer) -> int:
    """Return how many tokens a model reads: its own length, and no more than it has positions for.

    Args:
        model: Any.
    """
    own = model.max_seq_length
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    most = getattr(config, "max_position_embeddings", None)
    return min(one for one in (own, most, 1 << 30) if one is not None)


def add_latents(name: str, count: int, output: Path, *, seed: int = 0, noise: float = NOISE) -> ReasonEmbed:
    """Write a model that reads its vector through latent tokens, as a plain sentence-transformers directory.

    A bare decoder checkpoint gets last-token pooling and unit length; a directory keeps its modules. The new
    rows of the embeddings start from EOS's. A language-model head stays, tied or not.

    Args:
        name: Hub name or directory of a decoder.
        count: How many, K.
        output: A new folder.
        seed: Of the rows' noise.
        noise: Its standard deviation, relative to the root mean square of EOS's row.

    Returns:
        The model as it was saved, loaded on the CPU.

    Raises:
        ReasonEmbedError: If the count is no positive number or leaves no room for a text, the seed is out
            of range, or the model does not take latents: an encoder, an adapter, another pooling, latents
            already there, a tokenizer without a fast post-processor.
    """
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    _check_count(count)
    check_seed(seed)
    model = _load(name)
    _check_model(model, name)
    generator = load_head(name)
    transformer: Any = model[0]
    if generator is not None:
        # One copy of the weights; both readers get the same rows.
        transformer.model = generator.base_model
    ids = _append_tokens(model.tokenizer, count)
    _check_room(model, name, count)
    _add_rows(generator or transformer.model, ids, model.tokenizer.eos_token_id, seed, noise)
    if generator is not None:
        _never_generate(generator, ids)
    with replacing_folder(output) as part:
        model.save_pretrained(str(part))
        if generator is not None:
            keep_head(part, generator)
        _check_written(part, LatentTokens(ids))
    return ReasonEmbed(str(output), device="cpu")


def _load(name: str) -> ReasonEmbed:
    from reasonembed_mteb.models.reason_embed import ReasonEmbed

    try:
        return ReasonEmbed(name, device="cpu")
    except ReasonEmbedError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        msg = f"cannot load {name} ({reason}): give a directory that holds a decoder, or a hub name, online"
        raise ReasonEmbedError(msg) from error


def _check_count(count: int) -> None:
    if not 1 <= count <= _MOST:
        msg = f"{count} latent tokens: give at least 1 and at most {_MOST:,}"
        raise ReasonEmbedError(msg)


def _check_room(model: ReasonEmbed, name: str, count: int) -> None:
    """Refuse latents that leave no room for a text: all would have one vector."""
    length, around = context_length(model), special_tokens(model.tokenizer)
    if length <= around:
        msg = (
            f"{count:,} latent tokens leave no room for a text in the {length:,} tokens that {name} reads: "
            f"give fewer than {length - around + count:,}"
        )
        raise ReasonEmbedError(msg)


def _check_model(model: ReasonEmbed, name: str) -> None:
    """Refuse a model whose last token cannot stand for the whole text, or whose tokenizer takes no tokens."""
    from reasonembed_mteb.encoding.packing import is_causal

    backbone = getattr(model[0], "auto_model", None)
    if backbone is None or not is_causal(backbone):
        msg = (
            f"{name} is no decoder: its tokens see those after them, so that latent tokens would change "
            "every token's vector; give a causal decoder, such as Qwen3, Llama or Mistral"
        )
        raise ReasonEmbedError(msg)
    if getattr(backbone, "peft_config", None):
        msg = f"{name} is an adapter: merge it into its base, save that, and add latent tokens to it"
        raise ReasonEmbedError(msg)
    if not model.pools_last_token:
        msg = f"{name} does not pool the last token, from which a latent token is read; give one that does"
        raise ReasonEmbedError(msg)
    _check_tokenizer(model.tokenizer, name)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if not hasattr(getattr(tokenizer, "backend_tokenizer", None), "post_processor"):
        msg = (
            f"{name} has no fast tokenizer ({type(tokenizer).__name__}), whose post-processor appends the "
            "latent tokens: convert it to a tokenizer.json first"
        )
        raise ReasonEmbedError(msg)
    if known := latent_ids(tokenizer):
        msg = f"{name} has {len(known)} latent tokens already: start from the model without them"
        raise ReasonEmbedError(msg)
    if tokenizer.eos_token_id is None:
        msg = f"{name}'s tokenizer has no EOS token, from whose row latents start: set tokenizer.eos_token"
        raise ReasonEmbedError(msg)


def _append_tokens(tokenizer: Any, count: int) -> tuple[int, ...]:  # noqa: ANN401 - a fast tokenizer
    """Add the tokens to a tokenizer, and have its post-processor end each text with them."""
    from tokenizers import AddedToken

    names = [LATENT_NAME.format(number) for number in range(count)]
    tokens: list[str | AddedToken] = [AddedToken(one, special=True, normalized=False) for one in names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))
    change_post_processor(tokenizer, lambda before: surrounded(before, after=ids))
    return tuple(ids.values())


def _add_rows(
    model: Any,  # noqa: ANN401 - a transformers model, with a head or without
    ids: tuple[int, ...],
    eos: int,
    seed: int,
    noise: float,
) -> None:
    """Make rows of the tables for the new tokens; a table with room to spare keeps its size."""
    import torch

    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        # The library's own rows would be drawn from the process's random numbers; ours follow.
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table: Tensor = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    with torch.no_grad():
        start = table[eos].float()
        drawn = torch.randn(len(ids), len(start), generator=torch.Generator().manual_seed(seed))
        table[list(ids)] = (start + drawn * noise * start.square().mean().sqrt()).to(table)
        if head is not None and head.weight is not table:
            # An ordinary token's logit, neither EOS's nor a random one.
            head.weight[list(ids)] = head.weight[: min(ids)].float().mean(dim=0).to(head.weight)


def _never_generate(generator: PreTrainedModel, ids: tuple[int, ...]) -> None:
    """Have every reader's ``generate`` leave the latents out: they are read, never written."""
    config: Any = generator.generation_config
    config.suppress_tokens = sorted({*(config.suppress_tokens or ()), *ids})


def _check_written(folder: Path, latents: LatentTokens) -> None:
    """Read the tokenizer as every other reader does: some classes write the post-processor anew."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("", "a text"):
        ending = tokenizer(text)["input_ids"][-latents.count :]
        if tuple(ending) != latents.ids:
            msg = (
                f"{type(tokenizer).__name__} does not keep the latent tokens when it is read again: save the "
                "tokenizer as PreTrainedTokenizerFast first"
            )
            raise ReasonEmbedError(msg)
