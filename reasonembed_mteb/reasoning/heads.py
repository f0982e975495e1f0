"""Language-model heads: a decoder loaded with its head, and the head kept beside an embedder that is saved.

sentence-transformers loads a decoder without its head and saves it so; where the head is not tied to the
embeddings, transformers then draws a random one and only warns.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import read_json_object, write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel

_INDEX = "model.safetensors.index.json"


def load_generator(name: str, **options: Any) -> PreTrainedModel:
    """Load a decoder with its language-model head, in eval mode.

    Args:
        name: Hub name or directory, of an embedder too.
        **options: Of ``AutoModelForCausalLM.from_pretrained``; the dtype is the saved one by default.

    Raises:
        ReasonEmbedError: If it is no decoder, or its weights hold no head.
    """
    model = load_head(name, **options)
    if model is None:
        msg = (
            f"{name} has no language-model head, so that it cannot generate: give a checkpoint saved as a "
            "causal language model, such as one written by `reasonembed latents add` from such a checkpoint"
        )
        raise ReasonEmbedError(msg)
    return model


def load_head(name: str, **options: Any) -> PreTrainedModel | None:
    """Load a decoder with its language-model head; None where the weights hold none.

    Args:
        name: Hub name or directory.
        **options: As in `load_generator`.

    Raises:
        ReasonEmbedError: If transformers knows no generating model of its kind.
    """
    from transformers import AutoModelForCausalLM

    given = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True} | options
    # With the loading's report it returns two things, which its types do not say.
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(name, **given)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        msg = f"{name} is no decoder: transformers has no generating model of its kind"
        raise ReasonEmbedError(msg) from error
    if info["missing_keys"]:
        return None
    found: PreTrainedModel = model.eval()
    return found


def on_backbone(generator: PreTrainedModel, backbone: Any, head: nn.Module | None = None) -> PreTrainedModel:  # noqa: ANN401
    """Put an embedder's backbone under a generator, so that there is one copy of the weights.

    Args:
        generator: The same decoder with its head; changed in place.
        backbone: The embedder's transformers model, without a head.
        head: Taken in place of the generator's own, one that was trained; None keeps its own, and a tied one
            gets the backbone's embeddings.

    Returns:
        The generator.
    """
    if head is not None:
        generator.set_output_embeddings(head)  # type: ignore[no-untyped-call]
    setattr(generator, generator.base_model_prefix, backbone)
    generator.tie_weights()
    own: Any = generator.get_output_embeddings()  # type: ignore[no-untyped-call]
    own.to(device=backbone.device, dtype=backbone.dtype)
    return generator


def keep_head(folder: Path, generator: PreTrainedModel) -> None:
    """Put a generator's weights, with its head, into the directory of the embedder that it is.

    Readers of embedders pass over the head. The configuration then names the generating architecture.

    Args:
        folder: What sentence-transformers has just written, from the same backbone; changed in place.
        generator: See `load_generator`.
    """
    scratch = folder / ".generator"
    generator.save_pretrained(scratch)
    for old in (*folder.glob("model*.safetensors"), folder / _INDEX):
        old.unlink(missing_ok=True)
    for file in scratch.iterdir():
        if file.name != "config.json":
            file.replace(folder / file.name)
    config = (read_json_object(folder / "config.json") or {}) | {"architectures": [type(generator).__name__]}
    write_whole(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (scratch / "config.json").unlink()
    scratch.rmdir()
