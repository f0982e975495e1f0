"""Rows of token ids: their vectors are the texts', their gradients those of finite differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import save_decoder

from reasonembed_mteb import ReasonEmbed
from reasonembed_mteb.encoding.loop import attending
from reasonembed_mteb.encoding.token_rows import TokenRowEncoder
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "Why is the sky blue"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save_decoder(tmp_path_factory.mktemp("models") / "decoder", eos=True)
    return ReasonEmbed(str(folder), device="cpu")


@pytest.fixture(params=["encoder", "decoder"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def ids_of(model: Any, text: str = TEXT) -> np.ndarray[Any, Any]:
    return np.array([model[0].tokenizer(text, add_special_tokens=False)["input_ids"]])


def test_vectors_are_those_of_the_text(model: Any) -> None:
    expected = model.encode([TEXT], normalize_embeddings=True)
    got = TokenRowEncoder(model).vectors(ids_of(model))
    assert torch.allclose(got, torch.as_tensor(expected), atol=1e-6)
    # Many rows in small batches are the same rows.
    many = TokenRowEncoder(model, batch_tokens=20).vectors(np.repeat(ids_of(model), 5, axis=0))
    assert torch.allclose(many, got.expand(5, -1), atol=1e-6)


def test_the_frame_is_what_the_tokenizer_adds(encoder: Any, decoder: Any) -> None:
    begin, end = 4, 0
    rows = TokenRowEncoder(encoder)
    assert (rows.frame.before.tolist(), rows.frame.after.tolist()) == ([begin], [end])
    assert rows.room == encoder.max_seq_length - 2
    framed = TokenRowEncoder(decoder, "query: ").frame
    assert framed.before.tolist() == decoder[0].tokenizer("query: ", add_special_tokens=False)["input_ids"]
    assert framed.after.tolist() == [end]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradients_are_those_of_finite_differences(model: Any, similarity: str) -> None:
    model.similarity_fn_name = similarity
    rows = TokenRowEncoder(model, batch_tokens=40)
    model.double()
    ids = np.repeat(ids_of(model), 3, axis=0)
    ids[1, 2], ids[2, 1] = 70, 80
    targets = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        got = rows.gradients(ids, targets)
        for row, place, axis in ((0, 1, 3), (1, 2, 7), (2, 3, 0)):
            ends = [_moved(rows, model, ids[row], place, axis, step) for step in (1e-3, -1e-3)]
            expected = float((ends[0] - ends[1]) @ targets[row]) / 2e-3
            # transformers' norms of decoders compute in single precision.
            assert float(got[row, place, axis]) == pytest.approx(expected, rel=2e-2, abs=1e-3)
    finally:
        model.float()
        model.similarity_fn_name = "cosine"


def _moved(rows: TokenRowEncoder, model: Any, ids: Any, place: int, axis: int, step: float) -> torch.Tensor:
    """Return a row's vector with one number of one token's embedding moved."""

    def move(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output.reshape(-1, output.shape[-1])[len(rows.frame.before) + place, axis] += step
        return output

    handle = model[0].auto_model.get_input_embeddings().register_forward_hook(move)
    with torch.no_grad(), attending(model[0], rows._plan.kernel):
        vector = model(rows._encoding.features(rows.frame.around(ids[None])))["sentence_embedding"][0]
    handle.remove()
    return vector / vector.norm() if model.similarity_fn_name == "cosine" else vector


def test_weights_keep_asking_for_gradients(encoder: Any) -> None:
    encoder[0].auto_model.pooler.dense.bias.requires_grad_(requires_grad=False)
    before = [one.requires_grad for one in encoder.parameters()]
    TokenRowEncoder(encoder).gradients(ids_of(encoder), torch.ones(1, 32))
    assert [one.requires_grad for one in encoder.parameters()] == before
    assert len(set(before)) == 2
    assert all(one.grad is None for one in encoder.parameters())


def test_models_without_a_gradient_are_refused(encoder: Any) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = SentenceTransformer(
        modules=[StaticEmbedding(encoder[0].tokenizer.backend_tokenizer, embedding_dim=8)], device="cpu"
    )
    with pytest.raises(ReasonEmbedError, match=r"not StaticEmbedding.*need no gradient"):
        TokenRowEncoder(static)
    encoder.similarity_fn_name = "euclidean"
    with pytest.raises(ReasonEmbedError, match="similarity euclidean is not linear"):
        TokenRowEncoder(encoder)


def test_a_directory_is_read_as_its_object(encoder: Any, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path / "saved"))
    loaded = ReasonEmbed(str(tmp_path / "saved"), device="cpu")
    ids = ids_of(encoder)
    assert torch.allclose(
        TokenRowEncoder(loaded).vectors(ids), TokenRowEncoder(encoder).vectors(ids), atol=1e-6
    )
