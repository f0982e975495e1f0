"""Cross-encoders as rerankers: the library's own scores, whatever the kind of model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import CORPUS, make_tokenizer, save_decoder

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.models.cross_encoder import CrossEncoderReranker
from reasonembed_mteb.retrieval.reranker import score_pairs

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = [("Why is the sky blue?", text) for text in CORPUS.split(". ")]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "cross"
    tokenizer = make_tokenizer(bos=True, eos=True)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_scores_are_the_librarys(encoder_dir: Path) -> None:
    from sentence_transformers import CrossEncoder

    library = CrossEncoder(str(encoder_dir), device="cpu", max_length=20)
    ours = CrossEncoderReranker(str(encoder_dir), device="cpu", max_length=20)
    assert np.array_equal(ours.score(PAIRS), library.predict(PAIRS))
    assert np.array_equal(score_pairs(ours, PAIRS), library.predict(PAIRS))
    assert not np.array_equal(CrossEncoderReranker(encoder_dir, device="cpu").score(PAIRS), ours.score(PAIRS))
    assert ours.score([]).shape == (0,)
    assert CrossEncoderReranker(library).score(PAIRS).tolist() == ours.score(PAIRS).tolist()


def test_what_decides_the_scores_is_said(encoder_dir: Path) -> None:
    one, same = (CrossEncoderReranker(encoder_dir, device="cpu") for _ in range(2))
    other = CrossEncoderReranker(encoder_dir, device="cpu", instruction="Answer: ")
    assert one.identity == same.identity != other.identity
    assert len(str(one.identity["revision"])) == 32


def test_a_decoder_that_answers_yes_or_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    # The small tokenizer has no such words.
    words = {"yes": 1, "no": 2}
    own = PreTrainedTokenizerFast.convert_tokens_to_ids
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "convert_tokens_to_ids", lambda self, one: words.get(one) or own(self, one)
    )
    reranker = CrossEncoderReranker(save_decoder(tmp_path, chat=True), device="cpu")
    scores = reranker.score(PAIRS)
    assert scores.shape == (len(PAIRS),)
    assert np.isfinite(scores).all()


def test_models_that_cannot_rerank(encoder_dir: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    three: Any = CrossEncoder(
        str(encoder_dir), device="cpu", num_labels=3, model_kwargs={"ignore_mismatched_sizes": True}
    )
    with pytest.raises(ReasonEmbedError, match="gives 3 numbers a pair"):
        CrossEncoderReranker(three)
    with pytest.raises(ReasonEmbedError, match="cannot load the cross-encoder"):
        CrossEncoderReranker(str(tmp_path / "nothing"), device="cpu")
    broken = CrossEncoderReranker(encoder_dir, device="cpu")
    next(broken.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match="gives no finite score"):
        score_pairs(broken, PAIRS)
