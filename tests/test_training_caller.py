"""The losses in sentence-transformers' own trainer: they weigh, and know their columns."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from sentence_transformers.sparse_encoder.losses import CachedSpladeLoss, SpladeLoss

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training import CachedRedapterLoss, RedapterCallback, RedapterLoss

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

ROWS = {
    "query": ["Why is the sky blue?", "What passes?", "Given a post", "Who helps?"],
    "reasoning_query": ["sky blue Rayleigh scattering", "long waves pass", "a Biology post", "helps answer"],
    "positive": ["Rayleigh scattering", "long ones pass", "Biology passages", "the answer"],
    "negative": ["short waves", "retrieve relevant", "sky", "blue"],
}


def data(*names: str, rows: int = 4) -> Dataset:
    """Return some columns in an order."""
    columns: dict[str, Any] = ROWS | {"label": [0, 1, 0, 1]}
    return Dataset.from_dict({name: columns[name][:rows] for name in names})


ALL = data(*ROWS)


@pytest.fixture
def trained(encoder: SentenceTransformer, tmp_path: Path) -> Callable[..., Trace]:
    """Return a function that trains and tells what happened."""

    def train(
        loss: Any, dataset: Any = ALL, *, callbacks: Any = (), eval_dataset: Any = None, **options: Any
    ) -> Trace:
        common = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
        }
        sizes = {
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "disable_tqdm": True,
        }
        arguments = SentenceTransformerTrainingArguments(**(common | sizes | options))
        trace = Trace(loss)
        trainer = SentenceTransformerTrainer(
            model=encoder, args=arguments, train_dataset=dataset, eval_dataset=eval_dataset, loss=loss,
            callbacks=list(callbacks),
        )  # fmt: skip
        trainer.train()
        return trace

    return train


class Trace:
    """Notes, at each training batch of a loss, the step and whether it weighed."""

    def __init__(self, loss: Any) -> None:
        self.steps: list[tuple[int, bool]] = []
        for one in loss.values() if isinstance(loss, dict) else [loss]:
            for part in one.modules():
                if isinstance(part, RedapterLoss):
                    self._watch(part)

    def _watch(self, loss: RedapterLoss) -> None:
        weights = loss._weights  # type: ignore[attr-defined]

        def noted(losses: Any, easier: Any, *rest: Any) -> Any:
            if torch.is_grad_enabled() or loss.model.training:
                self.steps.append((loss.global_step, easier is not None))
            return weights(losses, easier, *rest)

        loss._weights = noted  # type: ignore[method-assign]


# Each training takes a second or more: one of a kind is run every time.
SLOW = pytest.mark.slow
PLAIN: dict[str, Callable[[Any], Any]] = {
    "plain": lambda model: RedapterLoss(model, start_step=1),
    "cached": lambda model: CachedRedapterLoss(model, start_step=1, mini_batch_size=1),
}
AROUND: dict[str, Callable[[Any], Any]] = {
    "matryoshka": lambda model: MatryoshkaLoss(model, RedapterLoss(model, start_step=1), [32, 8]),
    "cached matryoshka": lambda model: MatryoshkaLoss(model, PLAIN["cached"](model), [32, 8]),
    "layers": lambda model: AdaptiveLayerLoss(model, RedapterLoss(model, start_step=1)),
    "both": lambda model: Matryoshka2dLoss(model, RedapterLoss(model, start_step=1), [32, 8]),
    "cached splade": lambda model: CachedSpladeLoss(
        model, RedapterLoss(model, start_step=1), document_regularizer_weight=1e-3, mini_batch_size=1
    ),
    "splade": lambda model: SpladeLoss(
        model, RedapterLoss(model, start_step=1), document_regularizer_weight=1e-3
    ),
}


@pytest.mark.parametrize(
    "kind",
    ["plain", "cached", *(pytest.param(kind, marks=SLOW) for kind in AROUND)],
)
def test_weights_begin_at_the_trainer_s_step(
    kind: str, encoder: Any, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    steps = trained((PLAIN | AROUND)[kind](encoder)).steps
    assert {step for step, _ in steps} == {0, 1, 2}
    assert all(weighed == (step >= 1) for step, weighed in steps)
    assert "weights begin" not in caplog.text


LAYERS = [
    AdaptiveLayerLoss,
    pytest.param(
        lambda model, loss: Matryoshka2dLoss(model, loss, [32, 8]), marks=SLOW, id="with dimensions"
    ),
]


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same_start(model: Any, trained: Any) -> Callable[..., list[torch.Tensor]]:
    """Return a function that trains from the same fp64 weights each time, without dropout."""
    model.double()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def run(loss: Any, dataset: Any, **options: Any) -> list[torch.Tensor]:
        model.load_state_dict(start)
        trained(loss, dataset, **options)
        return weights(model)

    return run


def are_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(one, other, strict=True))


def test_a_negative_is_never_taken_for_a_reasoning_query(
    encoder: Any, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = same_start(encoder, trained)
    triplets = data("query", "positive", "negative")
    library = run(MultipleNegativesRankingLoss(encoder, scale=50), triplets)
    assert are_equal(run(RedapterLoss(encoder, start_step=1), triplets), library)
    assert caplog.text.count("no column is named reasoning_query among (query, positive, negative)") == 1
    assert are_equal(run(RedapterLoss(encoder, start_step=1), data("query", "negative", "positive")), library)
    # Nor the reasoning query for a document, where none is wanted.
    assert are_equal(run(RedapterLoss(encoder, start_step=None), ALL), library)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_the_order_of_named_columns_does_not_matter(kind: str, encoder: Any, trained: Any) -> None:
    run, loss = same_start(encoder, trained), PLAIN[kind]
    first = run(loss(encoder), ALL)
    other = data("label", "query", "positive", "negative", "reasoning_query")
    assert are_equal(run(loss(encoder), other), first)
    assert are_equal(run(loss(encoder), data("reasoning_query", "negative", "positive", "query")), first)
    # What is compared does depend on the weights.
    assert not are_equal(run(loss(encoder), data("query", "positive", "negative")), first)


def test_a_set_without_reasoning_among_others(encoder: Any, trained: Any) -> None:
    # The same number of columns in both: only the names tell them apart.
    both = DatasetDict(
        a=data("query", "reasoning_query", "positive"), b=data("query", "positive", "negative")
    )
    loss = RedapterLoss(encoder, start_step=0)
    steps = trained(loss, both, max_steps=4).steps
    assert sorted(weighed for _, weighed in steps) == [False, False, True, True]
    assert loss.metrics["rows_without_reasoning"] in (0, 2)


@pytest.mark.slow
def test_each_of_several_losses_weighs(encoder: Any, trained: Any) -> None:
    both = DatasetDict(a=ALL, b=data("reasoning_query", "query", "positive"))
    losses = {"a": RedapterLoss(encoder, start_step=2), "b": PLAIN["cached"](encoder)}
    steps = trained(losses, both, max_steps=4, callbacks=[RedapterCallback(losses)]).steps
    assert {step for step, _ in steps} == {0, 1, 2, 3}
    assert sum(weighed for _, weighed in steps) >= 2


def test_evaluation_knows_its_own_columns(encoder: Any, trained: Any) -> None:
    loss = RedapterLoss(encoder, start_step=0)
    trained(
        loss,
        ALL,
        eval_dataset=data("positive", "reasoning_query", "query"),
        eval_strategy="steps",
        eval_steps=1,
    )
    assert loss.metrics["ri_mean"].isnan()
    assert loss.metrics["rows_without_reasoning"] == 0


AMBIGUOUS = ALL.rename_column("reasoning_query", "rewritten")


@pytest.mark.parametrize(
    "through", ["loss", "callback", *(pytest.param(one, marks=SLOW) for one in ("matryoshka", "dictionary"))]
)
def test_open_columns_are_refused_before_a_step(through: str, encoder: Any, trained: Any) -> None:
    before = weights(encoder)
    loss: Any = RedapterLoss(encoder)
    loss = {"matryoshka": MatryoshkaLoss(encoder, loss, [32]), "dictionary": {"a": loss, "b": loss}}.get(
        through, loss
    )
    # The first set alone is fine: the second is looked at before it has its turn.
    dataset = DatasetDict(a=ALL, b=AMBIGUOUS) if through != "callback" else AMBIGUOUS
    callbacks = [RedapterCallback(loss)] if through == "callback" else []
    with pytest.raises(ReasonEmbedError, match="'rewritten' may be the reasoning query or a document"):
        trained(loss, dataset, callbacks=callbacks)
    assert are_equal(weights(encoder), before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_the_legacy_fit_has_no_names(encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import InputExample
    from torch.utils.data import DataLoader

    monkeypatch.chdir(tmp_path)
    examples = [
        InputExample(texts=list(texts)) for texts in zip(ROWS["query"], ROWS["positive"], strict=True)
    ]
    loader: Any = DataLoader(examples, batch_size=2)  # type: ignore[arg-type]
    loss = RedapterLoss(encoder, start_step=1)
    encoder.fit([(loader, loss)], epochs=1, show_progress_bar=False)
    assert loss.global_step == 1
    for example, negative in zip(examples, ROWS["negative"], strict=True):
        example.texts.append(negative)
    with pytest.raises(ReasonEmbedError, match="sentence_1"):
        encoder.fit([(loader, RedapterLoss(encoder))], epochs=1, show_progress_bar=False)


def test_a_step_that_nobody_tells_is_said_once(encoder: Any, caplog: pytest.LogCaptureFixture) -> None:
    loss = RedapterLoss(encoder, start_step=2)
    columns = [encoder.preprocess(texts) for texts in ROWS.values()]
    encoder.train()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss(columns)
        with torch.no_grad():
            loss(columns)
        assert "weights begin" not in caplog.text
        for _ in range(3):
            loss(columns)
        assert caplog.text.count("weights begin at step 2") == 1
        assert "RedapterCallback(loss)" in caplog.text
        caplog.clear()
        told = RedapterLoss(encoder, start_step=2)
        for step in range(5):
            told.global_step = step
            told(columns)
        RedapterLoss(encoder, start_step=None)(columns)
    assert not caplog.text
    assert told.weighted


def test_a_training_that_ends_before_weights_begin_says_so(
    encoder: Any, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trained(RedapterLoss(encoder, start_step=2))
    assert "throughout" not in caplog.text
    trained(RedapterLoss(encoder))
    assert caplog.text.count("weights begin at step 100 and the training has 3: it is plain InfoNCE") == 1


@pytest.mark.slow
def test_a_trainer_that_changes_the_tensors_keeps_the_names(encoder: Any, tmp_path: Path) -> None:
    class Moving(SentenceTransformerTrainer):
        """Hands out copies, as a trainer that moves batches itself would."""

        def collect_features(self, inputs: Any) -> Any:
            features, labels = super().collect_features(inputs)
            return [
                {k: v.clone() if hasattr(v, "clone") else v for k, v in f.items()} for f in features
            ], labels

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", max_steps=1
    )
    loss = RedapterLoss(encoder, start_step=0)
    dataset = data("query", "positive", "negative")
    Moving(model=encoder, args=arguments, train_dataset=dataset, loss=loss).train()
    assert loss.metrics["rows_without_reasoning"] == 4


@pytest.mark.slow
def test_the_columns_of_a_stream_are_known(encoder: Any, trained: Any) -> None:
    stream = data("query", "positive", "reasoning_query").to_iterable_dataset()
    assert all(
        weighed for _, weighed in trained(RedapterLoss(encoder, start_step=0), stream, max_steps=2).steps
    )


def test_a_told_step_is_the_loss_s(encoder: Any, trained: Any) -> None:
    loss = RedapterLoss(encoder, start_step=100)
    loss.global_step = 100
    assert all(weighed for _, weighed in trained(loss).steps)


def test_a_model_that_is_wrapped_weighs(encoder: Any, trained: Any) -> None:
    # As on several GPUs in one process: the loss holds the wrapper, not the model.
    loss = RedapterLoss(encoder, start_step=1)
    loss.model = torch.nn.DataParallel(encoder)
    assert [weighed for _, weighed in trained(loss).steps] == [False, True, True]


def test_a_callback_needs_a_loss_of_ours(encoder: Any) -> None:
    with pytest.raises(ReasonEmbedError, match="holds no RedapterLoss"):
        RedapterCallback(MultipleNegativesRankingLoss(encoder))


@pytest.mark.slow
def test_resuming_goes_on_at_its_step(encoder: Any, trained: Any, tmp_path: Path) -> None:
    trained(RedapterLoss(encoder, start_step=3), max_steps=2, save_strategy="steps", save_steps=2)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=4,
        per_device_train_batch_size=2, save_strategy="no",
    )  # fmt: skip
    loss = RedapterLoss(encoder, start_step=3)
    trace = Trace(loss)
    trainer = SentenceTransformerTrainer(model=encoder, args=arguments, train_dataset=ALL, loss=loss)
    trainer.train(resume_from_checkpoint=True)
    assert trace.steps == [(2, False), (3, True)]


@pytest.mark.slow
@pytest.mark.parametrize("around", LAYERS)
def test_layers_count_as_around_the_library_s_loss(around: Any, encoder: Any, trained: Any) -> None:
    run = same_start(encoder, trained)
    triplets = data("query", "positive", "negative")
    torch.manual_seed(0)
    library = run(around(encoder, MultipleNegativesRankingLoss(encoder, scale=50)), triplets)
    assert are_equal(run(around(encoder, RedapterLoss(encoder)), triplets), library)


@pytest.mark.filterwarnings("ignore:AdaptiveLayerLoss is not compatible")
@pytest.mark.parametrize("around", LAYERS)
def test_layers_around_the_cached_loss_are_refused(around: Any, encoder: Any, trained: Any) -> None:
    with pytest.raises(ReasonEmbedError, match="use RedapterLoss in AdaptiveLayerLoss and Matryoshka2dLoss"):
        trained(around(encoder, CachedRedapterLoss(encoder)))
