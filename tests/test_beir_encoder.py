"""Our models in beir's own search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.beir_encoder import BeirEncoder
from reasonembed_mteb.models.reason_embed import ReasonEmbed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("registered")

INSTRUCTION = "Given a question, retrieve passages that answer it."


def test_an_encoder_takes_the_instruction_on_queries_only(qwen3_dir: Path) -> None:
    import torch

    model = ReasonEmbed(str(qwen3_dir), device="cpu")
    encoder = BeirEncoder(model, task="biology")
    options = {"convert_to_tensor": True, "show_progress_bar": False}
    query = encoder.encode_queries(["sky"], **options)
    torch.testing.assert_close(query, model.encode_query(["sky"], task="biology", **options))
    document = encoder.encode_corpus([{"title": "blue", "text": "sky "}], **options)
    torch.testing.assert_close(document, model.encode(["blue sky"], prompt="", **options))
    columns = encoder.encode_corpus({"title": ["blue"], "text": ["sky "]}, **options)
    torch.testing.assert_close(columns, document)
    short = BeirEncoder(model, task="biology", max_tokens=3).encode_corpus(
        [{"text": "sky blue sun light"}], **options
    )
    assert not torch.allclose(short, encoder.encode_corpus([{"text": "sky blue sun light"}], **options))
    with pytest.raises(ReasonEmbedError, match="not both"):
        BeirEncoder(model, INSTRUCTION, task="biology")
