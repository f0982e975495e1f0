"""EOS and BOS as a checkpoint's readers add them, whichever version of transformers reads it here.

With a ``tokenizer.json``, transformers 5 ignores ``add_eos_token`` and ``add_bos_token`` of
``tokenizer_config.json``. transformers 4 obeyed them for a few classes and ignored them for all others, as
those of Qwen and Llama 3: what FlagEmbedding trained on such a backbone says ``add_eos_token: true`` and has
never seen the token.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# The names of the tokens that `reasonembed latents add` adds, by number from 0.
LATENT_NAME = "<|latent_{}|>"
LATENT_PATTERN = re.compile(r"<\|latent_(\d+)\|>")

# As ``tokenizer.json`` holds one, or a piece of one.
PostProcessor = dict[str, Any]

# The classes of transformers 4.57.6 that write tokenizer.json's post-processor anew from (add_bos_token,
# add_eos_token), with their defaults.
REBUILT_TOKENIZERS = {
    "Llama": (True, False),
    "CodeLlama": (True, False),
    "Gemma": (True, False),
    "Cohere": (True, False),
    "GPTNeoX": (False, False),
}
_SIDES = {"add_bos_token": "bos_token", "add_eos_token": "eos_token"}


def latent_in(text: str) -> str | None:
    """Say why a text cannot be read beside latent tokens: it holds the name of one. None where it can.

    Whatever its number: how many latents the models have that read a file is not known as it is read.

    Args:
        text: Any.
    """
    found = LATENT_PATTERN.search(text)
    if found is None:
        return None
    return (
        f"holds {found[0]}, the name of a latent token, which a tokenizer reads as the token itself: write "
        "it in another way"
    )


def settle_special_tokens(
    tokenizer: Any,  # noqa: ANN401 - a transformers tokenizer
    name: str,
    processor_kwargs: dict[str, Any],
) -> None:
    """Have a tokenizer add BOS and EOS as transformers 4 did, and say so where its files disagree.

    Args:
        tokenizer: The tokenizer, changed in place.
        name: Hub name or directory that it was loaded from.
        processor_kwargs: What it was loaded with; what the user asked for there stays.
    """
    config = _configuration(name, processor_kwargs)
    wrong = {k: v for k, v in _contradictions(tokenizer, config).items() if k not in processor_kwargs}
    changed = wrong if rebuilt_class(config.get("tokenizer_class")) else {}
    for key, said in wrong.items():
        token = tokenizer_token(tokenizer, key)
        if key in changed:
            done = f"{'adding' if said else 'leaving out'} {token} as transformers 4 did"
        else:
            stays = "no text gets it" if said else "it stays"
            done = f"{token}: {stays}, as in every version of transformers; {_remedy(key, said)}"
        _warn(name, key, said, done)
    for key, default in _silent_defaults(tokenizer, config).items():
        if key not in processor_kwargs:
            _warn_of_default(tokenizer, name, key, default)
    if changed:
        _set(tokenizer, changed)


def warn_of_special_tokens(tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
    """Warn where a tokenizer adds other special tokens than its configuration says; change nothing.

    Args:
        tokenizer: The tokenizer of a directory that is loaded as it is.
        name: Hub name or directory that it was loaded from.
    """
    if tokenizer is None:
        return
    for key, said in _contradictions(tokenizer, _configuration(name, {})).items():
        _warn(name, key, said, f"this version of transformers does not obey; {_remedy(key, said)}")


def rebuilt_class(tokenizer_class: str | None) -> str | None:
    """Return the name in `REBUILT_TOKENIZERS` of a configuration's tokenizer class, or None.

    Args:
        tokenizer_class: Such as ``LlamaTokenizerFast``.
    """
    name = str(tokenizer_class or "").removesuffix("Fast").removesuffix("Tokenizer")
    return name if name in REBUILT_TOKENIZERS else None


def tokenizer_token(tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """Return the token that a key is about, such as ``</s>``."""
    return str(getattr(tokenizer, _SIDES[key]))


def _remedy(key: str, said: bool) -> str:
    return f'processor_kwargs={{"{key}": {said}}} obeys it'


def _warn_of_default(tokenizer: PreTrainedTokenizerBase, name: str, key: str, default: bool) -> None:
    logger.warning(
        "%s: tokenizer_config.json does not say %s, for which transformers 4 takes %s; %s %s here, as "
        "tokenizer.json says",
        name,
        key,
        str(default).lower(),
        tokenizer_token(tokenizer, key),
        "is not added" if default else "is added",
    )


def _warn(name: str, key: str, said: bool, done: str) -> None:
    adds = "does not add it" if said else "adds it"
    logger.warning(
        "%s: tokenizer_config.json says %s=%s but tokenizer.json %s (%s); %s",
        name,
        key,
        str(said).lower(),
        adds,
        "BOS" if key == "add_bos_token" else "EOS",
        done,
    )


def _configuration(name: str, processor_kwargs: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    names = ("cache_dir", "token", "revision", "local_files_only", "subfolder")
    options = {key: processor_kwargs[key] for key in names if key in processor_kwargs}
    file = cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **options)
    if file is None:
        return {}
    config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return config


def _contradictions(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> dict[str, bool]:
    """Return the keys that the configuration sets and the tokenizer does not obey, with what they say."""
    if not getattr(tokenizer, "is_fast", False):
        return {}
    found = _added(tokenizer)
    return {
        key: config[key]
        for key, token in _SIDES.items()
        if isinstance(config.get(key), bool)
        and getattr(tokenizer, token) is not None
        and config[key] != found[key]
    }


def _silent_defaults(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> dict[str, bool]:
    """Return the keys of which the configuration is silent and transformers 4's default is another."""
    rebuilt = rebuilt_class(config.get("tokenizer_class"))
    if rebuilt is None:
        return {}
    defaults = dict(zip(_SIDES, REBUILT_TOKENIZERS[rebuilt], strict=True))
    return _contradictions(tokenizer, {k: v for k, v in defaults.items() if config.get(k) is None})


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Return whether BOS is among the tokens that are put before a text, and EOS among those after it."""
    ids = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    before, after = ids[:1], ids[-1:]
    places = [place for place in range(len(ids)) if bare and ids[place : place + len(bare)] == bare]
    if places:
        before, after = ids[: places[0]], ids[places[0] + len(bare) :]
    return {
        "add_bos_token": tokenizer.bos_token_id in before,
        "add_eos_token": tokenizer.eos_token_id in after,
    }


def _set(tokenizer: Any, changed: dict[str, bool]) -> None:  # noqa: ANN401 - a fast tokenizer
    """Add or leave out BOS and EOS, and keep every other special token."""
    wanted = _added(tokenizer) | changed
    rest = set(tokenizer("a")["input_ids"]) - set(tokenizer("a", add_special_tokens=False)["input_ids"])
    if rest <= {tokenizer.bos_token_id, tokenizer.eos_token_id}:
        # The setters write the post-processor anew, so that it is saved with the tokenizer.
        for key, value in wanted.items():
            setattr(tokenizer, key, value)
        return
    tokens = {key: tokenizer_token(tokenizer, key) for key in changed}
    leaving = {key: token for key, token in tokens.items() if not changed[key]}
    adding = {
        key: {tokens[key]: tokenizer.convert_tokens_to_ids(tokens[key])} for key in changed.keys() - leaving
    }

    def edit(before: PostProcessor | None) -> PostProcessor:
        bare = _without(before, leaving.get("add_bos_token"), leaving.get("add_eos_token"))
        return surrounded(bare, adding.get("add_bos_token", {}), adding.get("add_eos_token", {}))

    change_post_processor(tokenizer, edit)


def change_post_processor(
    tokenizer: Any,  # noqa: ANN401 - a fast tokenizer
    edit: Callable[[PostProcessor | None], PostProcessor],
) -> None:
    """Change what a tokenizer puts around each text.

    Args:
        tokenizer: The tokenizer, changed in place.
        edit: Returns the new post-processor of the old, as ``tokenizer.json`` holds them; None is none.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    state["post_processor"] = edit(state["post_processor"])
    # A post-processor has no reader of its own.
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor


def surrounded(
    processor: PostProcessor | None,
    before: Mapping[str, int] | None = None,
    after: Mapping[str, int] | None = None,
) -> PostProcessor:
    """Return a post-processor that puts tokens around each text, outside those that it puts there already.

    Args:
        processor: The old one, as ``tokenizer.json`` holds it; None for none.
        before: Tokens that a text begins with, in their order, with their ids.
        after: Those that it ends with.
    """
    first, last = dict(before or {}), dict(after or {})
    added = {name: {"id": name, "ids": [place], "tokens": [name]} for name, place in (first | last).items()}

    def edit(template: PostProcessor) -> PostProcessor:
        return template | {
            "single": [*_specials(first, 0), *template["single"], *_specials(last, 0)],
            "pair": [*_specials(first, 0), *template["pair"], *_specials(last, 1)],
            "special_tokens": template["special_tokens"] | added,
        }

    if processor is None:
        return edit(_plain_template())
    # Not a second template: it would take the several pieces that the first hands on for several texts.
    changed = _with_template(processor, edit)
    return changed or {"type": "Sequence", "processors": [processor, edit(_plain_template())]}


def _without(processor: PostProcessor | None, first: str | None, last: str | None) -> PostProcessor | None:
    """Return a post-processor whose template has one token nowhere before a text, another nowhere after."""

    def edit(template: PostProcessor) -> PostProcessor:
        return template | {key: _pieces_without(template[key], first, last) for key in ("single", "pair")}

    return processor and (_with_template(processor, edit) or processor)


def _pieces_without(
    pieces: Sequence[PostProcessor], first: str | None, last: str | None
) -> list[PostProcessor]:
    texts = [place for place, piece in enumerate(pieces) if "Sequence" in piece]

    def stays(place: int, piece: PostProcessor) -> bool:
        token = piece.get("SpecialToken", {}).get("id")
        left_out = first if place < texts[0] else last if place > texts[-1] else None
        return token is None or token != left_out

    return [piece for place, piece in enumerate(pieces) if stays(place, piece)]


def _with_template(
    processor: PostProcessor, edit: Callable[[PostProcessor], PostProcessor]
) -> PostProcessor | None:
    """Return a post-processor whose last template is changed, or None where it has none."""
    if processor["type"] == "TemplateProcessing":
        return edit(processor)
    parts = processor.get("processors", [])
    for place in reversed(range(len(parts))):
        if changed := _with_template(parts[place], edit):
            return processor | {"processors": [*parts[:place], changed, *parts[place + 1 :]]}
    return None


def _plain_template() -> PostProcessor:
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}


def _specials(names: Iterable[str], kind: int) -> list[PostProcessor]:
    return [{"SpecialToken": {"id": name, "type_id": kind}} for name in names]
