"""Our models in beir's own search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mteb
import pytest

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.beir_encoder import BeirEncoder
from reasonembed_mteb.models.mteb_encoder import ProtocolEncoder
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.retrieval.rows import find

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("registered")

INSTRUCTION = "Given a question, retrieve passages that answer it."


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ({}, ""),
        ({"task": "biology"}, "Task: {biology} => "),
        ({"task": "BrightProBiologyRetrieval"}, "Task: {biology} => "),
        ({"task": "pony"}, "pony "),
        ({"instruction": INSTRUCTION}, f"Task: {INSTRUCTION} => "),
        ({"instruction": INSTRUCTION, "template": "{instruction}: "}, f"{INSTRUCTION}: "),
    ],
)
def test_the_prefix_is_the_one_that_a_run_puts_there(
    given: dict[str, str], prefix: str, qwen3_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    biology = find("biology").instruction
    # A directory that was trained with another template, and with a prompt of its own for one task.
    prompts = {f"{find('biology').name}-query": f"Task: {biology} => ", f"{find('pony').name}-query": "pony "}
    prompts |= {"query": "", "document": ""}
    model = ReasonEmbed(str(qwen3_dir), device="cpu", prompts=prompts)
    model.prompts = prompts
    seen = []
    inner = model._inference

    def spy(texts: list[str], *, prompt: str | None, **kwargs: Any) -> Any:
        seen.append(prompt or "")
        return inner(texts, prompt=prompt, **kwargs)

    monkeypatch.setattr(model, "_inference", spy)
    encoder = BeirEncoder(model, **given)
    encoder.encode_queries(["sky"], show_progress_bar=False)
    encoder.encode_corpus([{"text": "blue"}], show_progress_bar=False)
    model.encode_query("sky", **{key: value for key, value in given.items() if key != "template"})
    assert seen[:2] == [prefix.replace("{biology}", biology), ""]
    if "template" not in given:
        assert seen[2] == seen[0]
    if "task" in given:
        rule = ProtocolEncoder(model, "r").prompt_rule
        assert rule.prefix(mteb.get_task(find(given["task"]).name).metadata) == seen[0]


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
