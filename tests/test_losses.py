"""Redapter's losses against a reference of explicit loops, in fp64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loss_ranks
import pytest
import torch
from loss_reference import Settings, bag_batch, bag_model, redapter, share, worst
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training import CachedRedapterLoss, RedapterLoss
from reasonembed_mteb.training.features import Extras

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

TOLERANCE = 1e-12
QUERIES = ["Why is the sky blue?", "How do long waves pass?", "What is scattering?", "Post"]
POSITIVES = [
    "Rayleigh scattering sends short waves to all sides",
    "long ones pass",
    "sky",
    "answer the post",
]
# The first is its positive's own text, which is found far more easily than by the query.
REASONING = [POSITIVES[0], "Why do long ones pass? waves", "What is scattering? blue sky sides", "x y z"]
NEGATIVES = [
    ["a Biology post", "Given that"],
    ["the the", "sends"],
    ["retrieve passages relevant", "help"],
    ["?", "blue blue blue sky " * 4],
]
LOSSES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "rows-1": {"mini_batch_size": 1},
    "rows-3": {"mini_batch_size": 3},
    "rows-32": {"mini_batch_size": 32},
    "tokens": {"mini_batch_num_tokens": 30},
}


@pytest.fixture(scope="module")
def model(qwen3_dir: Path) -> SentenceTransformer:
    """Load a two-layer decoder in fp64."""
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    backbone = Transformer(str(qwen3_dir), modality_config=text, module_output_name="token_embeddings")
    pooling = Pooling(backbone.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[backbone, pooling], device="cpu").double()


@pytest.fixture(autouse=True)
def _fresh(model: SentenceTransformer) -> Iterator[None]:
    model.zero_grad()
    model.train()
    yield
    model.zero_grad()


class Case:
    """A batch as texts, and what the losses are set to."""

    def __init__(
        self, batch: int = 4, group: int = 3, *, loss: dict[str, Any] | None = None, **ours: Any
    ) -> None:
        self.queries, self.reasoning = QUERIES[:batch], REASONING[:batch]
        self.groups = [[POSITIVES[i], *NEGATIVES[i]][:group] for i in range(batch)]
        self.loss = {"start_step": 100, **(loss or {})}
        self.step = ours.pop("step", 100)
        self.settings = Settings(weighted=self.step >= 100, **ours)
        self.ids: list[list[int]] | None = None
        self.positive_ids: list[list[int]] | None = None

    def columns(self, model: SentenceTransformer, *, packed: bool) -> list[dict[str, Any]]:
        """Tokenise it, documents as one column or as one a place in the group."""
        columns = [model.preprocess(self.queries), model.preprocess(self.reasoning)]
        if self.settings.known is not None:
            columns[1]["has_reasoning"] = torch.tensor(self.settings.known)
        if self.positive_ids is not None:
            columns[0]["positive_ids"] = torch.tensor(self.positive_ids)
        documents = (
            [[d for group in self.groups for d in group]] if packed else list(zip(*self.groups, strict=True))
        )
        columns += [model.preprocess(list(texts)) for texts in documents]
        if self.ids is not None:
            ids = torch.tensor(self.ids)
            for column, own in zip(columns[2:], [ids.flatten()] if packed else ids.T, strict=True):
                column["document_ids"] = own
        return columns


# The paper's temperature leaves most of a random model's candidates no share in the loss; this one does.
WARM = 0.5


def _warm(*, loss: dict[str, Any] | None = None, **ours: Any) -> Case:
    return Case(temperature=WARM, loss={"temperature": WARM, **(loss or {})}, **ours)


def _zero() -> Case:
    # Nothing scores 1 but the positive, and the temperature leaves nothing of the others.
    case = Case(temperature=1e-5, loss={"temperature": 1e-5})
    case.queries = POSITIVES[:4]
    return case


def _masked() -> Case:
    hidden = {(0, 2): {1}, (3, 1): {0}, (1, 3): {0, 2}, (2, 0): {2}}
    case = _warm(loss={"mask_false_negatives": True}, hidden=hidden)
    # 77 is another positive of query 2, which the batch does not hold as such.
    case.ids = [[1, 2, 77], [5, 6, 7], [8, 1, 10], [5, 12, 5]]
    case.positive_ids = [[1, 1], [5, 90], [8, 77], [5, 5]]
    return case


SUM: dict[str, Any] = {"loss": {"normalize_weights": False}, "normalize": False}
CASES: dict[str, Callable[[], Case]] = {
    "before": lambda: Case(step=99),
    "after": Case,
    "cap 0.5": lambda: Case(cap=0.5, loss={"max_intensity": 0.5}),
    "no cap": lambda: Case(cap=math.inf, loss={"max_intensity": math.inf}),
    "sum": lambda: Case(**SUM),
    "warm before": lambda: _warm(step=99),
    "warm": _warm,
    "warm cap 1": lambda: _warm(cap=1.0, loss={"max_intensity": 1}),
    "warm sum": lambda: _warm(**SUM),
    "some missing": lambda: _warm(known=[True, False, True, False]),
    "some missing, sum": lambda: _warm(known=[False, True, True, True], **SUM),
    "all missing": lambda: _warm(known=[False] * 4),
    "all missing, sum": lambda: _warm(known=[False] * 4, **SUM),
    "zero": _zero,
    "batch 1": lambda: Case(1),
    "batch 1, group 1": lambda: Case(1, 1),
    "group 1": lambda: Case(3, 1),
    "masked": _masked,
}


def build(model: Any, kind: str, **settings: Any) -> RedapterLoss:
    """Build one of the losses."""
    options = LOSSES[kind]
    return (
        RedapterLoss(model, **settings)
        if options is None
        else CachedRedapterLoss(model, **settings, **options)
    )


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Take the gradients of every parameter away."""
    taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def reference(model: SentenceTransformer, case: Case) -> tuple[Tensor, list[float | None], dict[str, Tensor]]:
    """Compute a case text by text."""

    def embed(text: str) -> Tensor:
        return model(model.preprocess([text]))["sentence_embedding"][0]

    queries = [embed(text) for text in case.queries]
    groups = [[embed(text) for text in group] for group in case.groups]
    with torch.no_grad():
        reasoning = [embed(text) for text in case.reasoning]
    loss, intensity = redapter(queries, reasoning, groups, case.settings)
    loss.backward()
    return loss.detach(), intensity, gradients(model)


@pytest.fixture(scope="module")
def references(model: SentenceTransformer) -> dict[str, Any]:
    """Compute each case once."""
    return {name: reference(model, make()) for name, make in CASES.items()}


@pytest.mark.parametrize("kind", ["plain", "rows-3", "tokens"])
@pytest.mark.parametrize("name", CASES)
def test_parameters(name: str, kind: str, model: SentenceTransformer, references: dict[str, Any]) -> None:
    case = CASES[name]()
    expected, intensity, grads = references[name]
    for packed in (False, True):
        loss = build(model, kind, **case.loss)
        loss.global_step = case.step
        value = loss(case.columns(model, packed=packed))
        assert worst(value.detach(), expected) <= TOLERANCE
        assert worst(loss.metrics["loss"], expected) <= TOLERANCE
        value.backward()
        ours = gradients(model)
        assert ours.keys() == grads.keys()
        assert len(ours) > 20
        assert max(worst(ours[key], grads[key]) for key in grads) <= TOLERANCE
        flat = torch.cat([g.flatten() for g in ours.values()])
        # Guard against comparing nothing with nothing.
        assert (flat.abs().max() > 1e-3) == (name not in ("zero", "batch 1, group 1"))
        present = [value for value in intensity if value is not None] if case.settings.weighted else []
        assert loss.metrics["rows_without_reasoning"] == intensity.count(None)
        if present:
            assert loss.metrics["ri_mean"].item() == pytest.approx(sum(present) / len(present), rel=1e-6)
            assert loss.metrics["ri_max"].item() == pytest.approx(max(present), rel=1e-6)
        else:
            assert loss.metrics["ri_mean"].isnan()


def test_the_cases_are_what_they_say(references: dict[str, Any]) -> None:
    after = references["after"][1]
    assert max(after) == 5.0
    assert min(after) < 2
    assert references["cap 0.5"][1].count(0.5) > 1
    assert max(references["no cap"][1]) > 5
    assert references["zero"][1] == [0.0] * 4
    assert references["warm cap 1"][1].count(1.0) in (1, 2, 3)
    losses = {
        references[name][0].item() for name in ("warm", "warm before", "warm cap 1", "warm sum", "masked")
    }
    assert len({round(loss, 6) for loss in losses}) == 5


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("packed", [False, True])
def test_embeddings(kind: str, packed: bool, model: SentenceTransformer) -> None:
    draw = torch.Generator().manual_seed(1)
    batch, group, width = 5, 4, 7
    for normalize in (True, False):
        query, reasoning = torch.randn(2, batch, width, generator=draw, dtype=torch.float64)
        documents = torch.randn(batch, group, width, generator=draw, dtype=torch.float64)
        reasoning = documents[:, 0] + 0.9 * reasoning
        known = [True, True, False, True, True]
        leaves = [row.clone().requires_grad_() for row in query]
        group_leaves = [[row.clone().requires_grad_() for row in rows] for rows in documents]
        settings = Settings(temperature=0.1, normalize=normalize, known=known)
        expected, _ = redapter(leaves, list(reasoning), group_leaves, settings)
        expected.backward()
        columns = [query, documents.flatten(0, 1)] if packed else [query, *documents.unbind(1)]
        columns = [column.clone().requires_grad_() for column in columns]
        loss = build(model, kind, temperature=0.1, start_step=0, normalize_weights=normalize)
        embedded = [columns[0], reasoning.clone().requires_grad_(), *columns[1:]]
        value = loss.compute_loss_from_embeddings(embedded, extras=Extras(has_reasoning=torch.tensor(known)))
        value.backward()
        assert worst(value.detach(), expected.detach()) <= TOLERANCE
        assert embedded[1].grad is None
        assert worst(columns[0].grad, torch.stack([leaf.grad for leaf in leaves])) <= TOLERANCE
        theirs = torch.stack([leaf.grad for rows in group_leaves for leaf in rows])
        ours = columns[1].grad if packed else torch.stack([c.grad for c in columns[1:]], 1).flatten(0, 1)
        assert worst(ours, theirs) <= TOLERANCE
        assert theirs.abs().max() > 0.01


@pytest.mark.parametrize("kind", LOSSES)
def test_uniform_weights_are_the_library_s_loss(kind: str, model: SentenceTransformer) -> None:
    columns = Case().columns(model, packed=False)
    library = MultipleNegativesRankingLoss(model, scale=50)
    expected = library([dict(columns[0]), *map(dict, columns[2:])], None)
    expected.backward()
    grads = gradients(model)
    two_columns = Case().columns(model, packed=True)
    del two_columns[1]
    for start_step, step, given in (
        (100, 0, columns),
        (None, 0, [columns[0], *columns[2:]]),
        (0, 5, two_columns),
    ):
        loss = build(model, kind, start_step=start_step)
        loss.global_step = step
        value = loss(given)
        value.backward()
        assert worst(value.detach(), expected.detach()) <= TOLERANCE
        ours = gradients(model)
        assert max(worst(ours[key], grads[key]) for key in grads) <= TOLERANCE
        assert loss.metrics["rows_without_reasoning"] == (0 if given is columns else 4)


def test_positive_and_packed_negatives_as_two_columns(
    model: SentenceTransformer, references: dict[str, Any]
) -> None:
    case = Case()
    columns = case.columns(model, packed=False)[:3]
    columns.append(model.preprocess([text for rows in NEGATIVES for text in rows]))
    for kind in ("plain", "rows-3"):
        loss = build(model, kind, **case.loss)
        loss.global_step = 100
        assert worst(loss(columns).detach(), references["after"][0]) <= TOLERANCE


def test_reasoning_queries_are_not_encoded_before_they_count(model: SentenceTransformer) -> None:
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0]["input_ids"])))
    columns = Case().columns(model, packed=True)
    try:
        for kind, before, after in (("plain", [4, 12], [4, 4, 12]), ("rows-32", [4, 12], [4, 4, 12])):
            loss = build(model, kind)
            assert loss.global_step == 0
            loss(columns)
            assert calls == before
            calls.clear()
            loss.global_step = 100
            loss(columns)
            assert calls == after
            calls.clear()
            model.eval()
            with torch.no_grad():
                value = loss(columns)
            model.train()
            assert calls == before
            assert value == loss.metrics["loss_unweighted"]
            calls.clear()
    finally:
        hook.remove()


def test_the_model_never_sees_the_extra_keys(model: SentenceTransformer) -> None:
    seen: set[str] = set()
    hook = model.register_forward_pre_hook(lambda _, args: seen.update(args[0]))
    try:
        for kind in ("plain", "rows-3"):
            columns = _masked().columns(model, packed=True)
            columns[1]["has_reasoning"] = torch.ones(4, dtype=torch.bool)
            keys = [set(column) for column in columns]
            build(model, kind, start_step=0, mask_false_negatives=True)(columns).backward()
            # Nor do its activations stay in what the caller holds.
            assert [set(column) for column in columns] == keys
    finally:
        hook.remove()
    assert {"input_ids", "attention_mask"} <= seen
    assert not seen & {"has_reasoning", "document_ids", "positive_ids"}


def test_what_a_row_without_reasoning_query_holds_does_not_matter(model: SentenceTransformer) -> None:
    results = []
    for text in ("anything", "something else entirely"):
        case = Case(known=[True, False, True, True])
        case.reasoning = [case.reasoning[0], text, *case.reasoning[2:]]
        loss = build(model, "plain", start_step=0)
        results.append((loss(case.columns(model, packed=True)).item(), loss.metrics["ri_max"].item()))
    assert results[0] == results[1]


def test_metrics(model: SentenceTransformer, references: dict[str, Any]) -> None:
    case = Case(known=[True, True, True, False])
    loss = build(model, "plain", start_step=0)
    assert loss.metrics == {}
    loss(case.columns(model, packed=True)).backward()
    metrics = {key: value.item() for key, value in loss.metrics.items()}
    assert not any(value.requires_grad for value in loss.metrics.values())
    intensity = sorted(references["after"][1][:3])
    assert metrics["ri_min"] == pytest.approx(intensity[0])
    assert metrics["ri_median"] == pytest.approx(intensity[1])
    assert metrics["ri_max"] == 5
    assert metrics["ri_clipped"] == pytest.approx(intensity.count(5.0) / 3)
    assert metrics["rows_without_reasoning"] == 1
    assert metrics["loss_unweighted"] == pytest.approx(references["before"][0].item())
    assert metrics["documents_masked"] == 0
    loss.start_step = 1
    loss(case.columns(model, packed=True))
    assert loss.metrics.keys() == metrics.keys()
    masked = _masked()
    loss = build(model, "rows-3", **masked.loss)
    loss(masked.columns(model, packed=True))
    assert loss.metrics["documents_masked"] == 5 / 4


def bert(dropout: float = 0.1) -> SentenceTransformer:
    """Build a two-layer encoder with dropout."""
    from conftest import make_tokenizer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    backbone = BertModel(BertConfig(vocab_size=400, **sizes, **drop), add_pooling_layer=False)

    class Encoder(torch.nn.Module):
        """A backbone with mean pooling, as one module."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.tokenizer = backbone, make_tokenizer()

        def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
            states = self.backbone(features["input_ids"], features["attention_mask"]).last_hidden_state
            mask = features["attention_mask"][..., None].to(states.dtype)
            return features | {"sentence_embedding": (states * mask).sum(1) / mask.sum(1)}

        def preprocess(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return dict(self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))

    return SentenceTransformer(modules=[Encoder()], device="cpu").train()


@pytest.mark.parametrize(
    "options", [{"mini_batch_size": 2}, {"mini_batch_num_tokens": 25}, {"mini_batch_size": 99}]
)
def test_dropout_is_the_same_in_both_passes(options: dict[str, Any]) -> None:
    model = bert().double()
    columns = Case().columns(model, packed=True)
    loss = CachedRedapterLoss(model, start_step=0, **options)
    torch.manual_seed(7)
    value = loss(columns)
    after = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), after)
    ours = gradients(model)
    # The same mini-batches in the same order, all kept in memory.
    torch.manual_seed(7)
    with torch.no_grad():
        reasoning = torch.cat([r for r, _ in loss.embed_minibatch_iter(columns[1], False, False)])
    query, documents = (
        torch.cat([r for r, _ in loss.embed_minibatch_iter(column, True, False)])
        for column in (columns[0], columns[2])
    )
    expected = loss.compute_loss_from_embeddings([query, reasoning, documents])
    expected.backward()
    theirs = gradients(model)
    assert worst(value.detach(), expected.detach()) <= TOLERANCE
    assert max(worst(ours[key], theirs[key]) for key in theirs) <= TOLERANCE
    if options == {"mini_batch_size": 99}:
        torch.manual_seed(7)
        plain = RedapterLoss(model, start_step=0)(columns)
        assert worst(plain.detach(), expected.detach()) <= TOLERANCE
    torch.manual_seed(8)
    assert worst(loss(columns).detach(), value.detach()) > 1e-3


def test_mixed_precision() -> None:
    model = bert(dropout=0.0)
    columns = Case().columns(model, packed=True)
    exact = RedapterLoss(model, start_step=0, temperature=0.1)
    exact(columns).backward()
    expected = gradients(model)
    found = {}
    seen: list[torch.dtype] = []
    model[0].backbone.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    for kind in ("plain", "rows-32", "rows-3"):
        loss = build(model, kind, start_step=0, temperature=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(columns)
        assert value.dtype == torch.float32
        # As trainers do: the backward pass stands outside.
        value.backward()
        assert set(seen) == {torch.bfloat16}
        seen.clear()
        found[kind] = gradients(model)
        # No parameter lost its gradient to weights that were cast, and kept, without one.
        assert found[kind].keys() == expected.keys()
        for key, theirs in expected.items():
            error = (found[kind][key] - theirs).norm() / theirs.norm().clamp(min=1e-3)
            assert error < 0.1, key
    for key, theirs in found["plain"].items():
        assert (found["rows-32"][key] - theirs).norm() / theirs.norm().clamp(min=1e-3) < 0.005, key


def test_low_precision_embeddings_are_scored_in_float32(model: SentenceTransformer) -> None:
    draw = torch.Generator().manual_seed(0)
    columns = [torch.randn(n, 16, generator=draw).bfloat16() for n in (4, 4, 12)]
    low = RedapterLoss(model, start_step=0).compute_loss_from_embeddings(columns)
    high = RedapterLoss(model, start_step=0).compute_loss_from_embeddings([c.double() for c in columns])
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(high.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = RedapterLoss(model, start_step=0).compute_loss_from_embeddings([c.float() for c in columns])
    assert mixed.item() == low.item()


def test_gradients_scale_and_accumulate(model: SentenceTransformer) -> None:
    columns = Case().columns(model, packed=True)
    for kind in ("plain", "tokens"):
        loss = build(model, kind, start_step=0)
        loss(columns).backward()
        once = gradients(model)
        (loss(columns) * 0.25).backward()
        (loss(columns) * 0.5).backward()
        both = gradients(model)
        assert max(worst(both[key], 0.75 * once[key]) for key in once) <= TOLERANCE


def test_within_matryoshka(model: SentenceTransformer) -> None:
    columns = Case().columns(model, packed=True)
    values, grads = [], []
    for kind in ("plain", "rows-3"):
        inner = build(model, kind, start_step=0)
        value = MatryoshkaLoss(model, inner, matryoshka_dims=[32, 8])([dict(c) for c in columns], None)
        value.backward()
        values.append(value.detach())
        grads.append(gradients(model))
    assert worst(values[1], values[0]) <= TOLERANCE
    # Their decorator lets the uncached reasoning query be cut as well, and ours cuts it in the cached loss.
    assert max(worst(grads[1][key], grads[0][key]) for key in grads[0]) <= TOLERANCE


def test_within_adaptive_layers(model: SentenceTransformer) -> None:
    case = Case(known=[True, False, True, True])
    columns = case.columns(model, packed=True)
    loss = RedapterLoss(model, start_step=0, temperature=WARM)
    around = AdaptiveLayerLoss(model, loss, n_layers_per_step=-1, kl_temperature=0)
    value = around([dict(column) for column in columns], None)
    value.backward()
    ours = gradients(model)
    # The mean of the earlier layers' losses beside the last layer's, each from that layer's vectors.
    model[0].auto_model.config.output_hidden_states = True
    try:
        layers = [model[0](dict(column)) for column in columns]
    finally:
        model[0].auto_model.config.output_hidden_states = False
    each = []
    for number in range(3):
        vectors = [
            model[1]({**features, "token_embeddings": features["all_layer_embeddings"][number]})[
                "sentence_embedding"
            ]
            for features in layers
        ]
        extras = Extras(has_reasoning=columns[1]["has_reasoning"])
        each.append(loss.compute_loss_from_embeddings(vectors, extras=extras))
    expected = each[2] + (each[0] + each[1]) / 2
    expected.backward()
    theirs = gradients(model)
    assert worst(value.detach(), expected.detach()) <= TOLERANCE
    assert max(worst(ours[key], theirs[key]) for key in theirs) <= TOLERANCE


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Compute every case in two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("loss_ranks.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors.decode()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("cache", loss_ranks.CACHES)
@pytest.mark.parametrize("name", loss_ranks.SETTINGS)
def test_two_devices_are_one_batch(cache: str, name: str, two_ranks: list[dict[Any, Any]]) -> None:
    joined = share(bag_batch(loss_ranks.QUERIES, loss_ranks.GROUP), 0, 1)
    loss, model = loss_ranks.build(cache, **loss_ranks.SETTINGS[name])
    expected = loss_ranks.run(loss, model, joined)
    ranks = [results[True, cache, name] for results in two_ranks]
    # What a trainer logs is the mean over devices.
    assert worst((ranks[0]["loss"] + ranks[1]["loss"]) / 2, expected["loss"]) <= TOLERANCE
    for rank in ranks:
        assert (
            max(worst(rank["grads"][key], expected["grads"][key]) for key in expected["grads"]) <= TOLERANCE
        )
        for key, value in expected["metrics"].items():
            torch.testing.assert_close(rank["metrics"][key], value, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert expected["grads"]["0.layer.weight"].abs().max() > 0.01
    if name == "mask":
        assert expected["metrics"]["documents_masked"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("cache", loss_ranks.CACHES)
@pytest.mark.parametrize("name", loss_ranks.SETTINGS)
def test_two_devices_apart_are_averaged(cache: str, name: str, two_ranks: list[dict[Any, Any]]) -> None:
    alone = []
    for rank in (0, 1):
        mine = share(bag_batch(loss_ranks.QUERIES, loss_ranks.GROUP), rank, 2)
        loss, model = loss_ranks.build(cache, **loss_ranks.SETTINGS[name])
        alone.append(loss_ranks.run(loss, model, mine))
        assert worst(two_ranks[rank][False, cache, name]["loss"], alone[rank]["loss"]) <= TOLERANCE
    for results in two_ranks:
        for key, ours in results[False, cache, name]["grads"].items():
            assert worst(ours, (alone[0]["grads"][key] + alone[1]["grads"][key]) / 2) <= TOLERANCE


@pytest.mark.slow
def test_devices_of_unequal_batches_are_told(two_ranks: list[dict[Any, Any]]) -> None:
    for results in two_ranks:
        assert "documents_a_query differs between devices ([3, 4])" in results["uneven"]


def test_gathering_without_processes_is_the_same() -> None:
    columns = share(bag_batch(4, 2), 0, 1)
    values = [
        RedapterLoss(bag_model(), start_step=0, gather_across_devices=g)(columns).item()
        for g in (True, False)
    ]
    assert values[0] == values[1]


OUT_OF_RANGE = [
    ("temperature", 0, "above 0"),
    ("temperature", -0.02, "above 0"),
    ("temperature", math.nan, "above 0"),
    ("temperature", math.inf, "above 0"),
    ("max_intensity", 0.0, "above 0"),
    ("max_intensity", -5, "above 0"),
    ("max_intensity", math.nan, "above 0"),
    ("start_step", -1, "0 or more"),
]
OF_THE_CACHE = [("mini_batch_size", 0, "1 row or more"), ("mini_batch_num_tokens", 0, "1 or more")]


@pytest.mark.parametrize(
    ("kind", "setting", "value", "allowed"),
    [(RedapterLoss, *case) for case in OUT_OF_RANGE]
    + [(CachedRedapterLoss, *case) for case in OUT_OF_RANGE + OF_THE_CACHE],
)
def test_settings_out_of_range(kind: type, setting: str, value: float, allowed: str) -> None:
    with pytest.raises(ReasonEmbedError, match=f"{setting}={value}; allowed is .*{allowed}") as caught:
        kind(bag_model(), **{setting: value})
    assert isinstance(caught.value, ValueError)


def _change(column: int, **keys: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns[column] |= keys
        return columns

    return change


def _rows(column: int, rows: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns[column] = {key: value[:rows] for key, value in columns[column].items()}
        return columns

    return change


@pytest.mark.parametrize("kind", ["plain", "rows-3"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns[:1], r"1 column\(s\) given"),
        (lambda _: [], r"0 column\(s\) given"),
        (_rows(2, 7), "document column 0 has 7 rows, no multiple of the 4 queries"),
        (_rows(1, 3), "3 reasoning queries for 4 queries"),
        (_change(0, has_reasoning=torch.ones(4)), "column 0 is read as the query but holds 'has_reasoning'"),
        (_change(1, document_ids=torch.arange(4)), "read as the reasoning_query but holds 'document_ids'"),
        (_change(1, has_reasoning=torch.ones(3)), r"has_reasoning has shape \(3,\); allowed is \(4,\)"),
        (_change(2, document_ids=torch.ones(8)), r"document_ids of document column 0 is torch.float32"),
        (_change(2, document_ids=torch.arange(4)), r"document_ids .* of shape \(4,\); allowed is int64"),
        (_change(0, positive_ids=torch.arange(4)), r"positive_ids has shape \(4,\); allowed is \(4, P\)"),
        (lambda columns: [*columns, share(bag_batch(4, 1), 0, 1)[1]], "belongs to the reasoning_query"),
        (
            lambda columns: [*columns, {k: v for k, v in columns[0].items() if k != "document_ids"}],
            "document_ids in 1 of 2 document columns",
        ),
    ],
)
def test_batches_that_do_not_fit(kind: str, change: Any, message: str) -> None:
    columns = change(share(bag_batch(4, 2), 0, 1))
    with pytest.raises(ReasonEmbedError, match=message):
        build(bag_model(), kind, start_step=0)(columns)


def test_masking_needs_ids() -> None:
    columns = share(bag_batch(4, 2), 0, 1)
    del columns[2]["document_ids"]
    with pytest.raises(ReasonEmbedError, match="hold no 'document_ids'"):
        RedapterLoss(bag_model(), mask_false_negatives=True)(columns)


def test_static_embeddings_take_the_plain_loss_only() -> None:
    from conftest import make_tokenizer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(make_tokenizer().backend_tokenizer, embedding_dim=8)
    model = SentenceTransformer(modules=[static], device="cpu")
    columns = Case().columns(model, packed=True)
    value = RedapterLoss(model, start_step=0)(columns)
    value.backward()
    assert value.isfinite()
    with pytest.raises(ReasonEmbedError, match="use RedapterLoss"):
        CachedRedapterLoss(model)


def test_config_and_citation(model: SentenceTransformer) -> None:
    config = {
        "temperature": 0.02,
        "max_intensity": 5.0,
        "start_step": 100,
        "normalize_weights": True,
        "gather_across_devices": False,
        "mask_false_negatives": False,
    }
    assert RedapterLoss(model).get_config_dict() == config
    cached = CachedRedapterLoss(model, start_step=3, mini_batch_size=4)
    assert cached.get_config_dict() == config | {
        "start_step": 3,
        "mini_batch_size": 4,
        "mini_batch_num_tokens": None,
    }
    assert "arXiv:2510.08252" in RedapterLoss(model).citation
    assert "2101.06983" in cached.citation
    assert RedapterLoss(model).citation in cached.citation


def test_the_package_is_cheap_to_import() -> None:
    code = (
        "import sys, reasonembed_mteb.training as t; assert 'RedapterLoss' in dir(t); "
        "assert not {'torch', 'sentence_transformers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], check=True
    )
    import reasonembed_mteb.training as training

    with pytest.raises(AttributeError, match="Nothing"):
        _ = training.Nothing
