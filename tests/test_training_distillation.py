"""Graded labels beside the loss: the arithmetic, cached and not, on shortened vectors too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional
from training_data import checked_rows, make_rows, tiny_recipe, write_rows

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.training.building import make_loss, shortened
from reasonembed_mteb.training.collator import GroupCollator
from reasonembed_mteb.training.columns import LossError
from reasonembed_mteb.training.distillation import grade_divergences
from reasonembed_mteb.training.losses import RedapterLoss
from reasonembed_mteb.training.recipes import check_recipe
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from pathlib import Path

GRADES = [[5.0, 2.0, 1.0], [3.0, math.nan, 1.0], [4.0, 4.0, 2.0]]


def test_the_divergence_is_its_definition() -> None:
    scores, grades = torch.randn(3, 3, dtype=torch.float64), torch.tensor(GRADES, dtype=torch.float64)
    found = grade_divergences(scores, grades, 2.0)
    for row in (0, 2):
        wanted = (grades[row] / 2).softmax(0)
        given = scores[row].softmax(0)
        assert found[row].item() == pytest.approx((wanted * (wanted / given).log()).sum().item())
    assert found[1] == 0
    # Scores that say what the grades say leave nothing to learn.
    assert grade_divergences(grades[:1] / 2, grades[:1], 2.0).item() == pytest.approx(0, abs=1e-12)


def rows() -> list[dict[str, Any]]:
    made = checked_rows(3)
    for row, grades in zip(made, ([5, 3], None, [4, 3]), strict=True):
        row["positive_grades"], row["negative_grades"] = grades, grades and [1, 2, 1, 2, 1]
    return made


def columns(encoder: Any) -> list[dict[str, Any]]:
    """Return a batch as the trainer hands it over."""
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer

    encoder.eval()
    collator = GroupCollator(preprocess_fn=encoder.preprocess, groups={"biology": 3}, with_grades=True)
    made, _ = SentenceTransformerTrainer.collect_features(None, collator(rows()))  # type: ignore[arg-type]
    return made


def loss_of(encoder: Any, **loss: Any) -> Any:
    recipe = check_recipe({"model": {"name": "x"}, "loss": {"start_step": 0} | loss}, "x")
    made = shortened(make_loss(encoder, recipe, 0), recipe.loss.matryoshka)
    # The loss itself weighs whenever gradients are taken.
    getattr(made, "loss", made).global_step = 1
    return made


def gradient(encoder: Any, loss: Any, batch: list[dict[str, Any]]) -> tuple[float, torch.Tensor]:
    encoder.zero_grad()
    value = loss([dict(column) for column in batch], None)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_grades_are_those_of_the_documents_drawn(encoder: Any) -> None:
    batch = columns(encoder)
    grades = batch[2]["grades"].reshape(3, 3)
    texts = GroupCollator(preprocess_fn=encoder.preprocess, groups={"biology": 3}).texts(rows())["documents"]
    for index, row in enumerate(rows()):
        mine = grades[index]
        if row["positive_grades"] is None:
            assert mine.isnan().all()
            continue
        both = row["positives"] + row["negatives"], row["positive_grades"] + row["negative_grades"]
        known = dict(zip(*both, strict=True))
        assert mine.tolist() == [known[text] for text in texts[3 * index : 3 * index + 3]]


def test_the_loss_is_redapters_and_the_weighted_mean_of_graded_rows(encoder: Any) -> None:
    batch = columns(encoder)
    plain, graded = loss_of(encoder), loss_of(encoder, grade_weight=0.3, grade_temperature=2.0)
    with torch.no_grad():
        query, _, documents = (encoder(dict(column))["sentence_embedding"] for column in batch)
    cosines = functional.cosine_similarity(query[:, None], documents.reshape(3, 3, -1), dim=2)
    grades = batch[2]["grades"].reshape(3, 3)
    mean = grade_divergences(cosines[[0, 2]] / 0.02, grades[[0, 2]], 2.0).mean()
    before, after = gradient(encoder, plain, batch)[0], gradient(encoder, graded, batch)[0]
    assert after == pytest.approx(before + 0.3 * mean.item(), rel=1e-5)
    assert graded.metrics["loss"].item() == pytest.approx(after, rel=1e-6)
    assert graded.metrics["loss_grades"].item() == pytest.approx(mean.item(), rel=1e-5)
    assert "loss_grades" not in plain.metrics
    # Without weight it is the loss itself, to the last bit.
    own = RedapterLoss(encoder, start_step=0, gather_across_devices=True)
    own.global_step = 1
    assert gradient(encoder, own, batch)[0] == before


@pytest.mark.parametrize("cache", [{"mini_batch_size": 2}, {"mini_batch_tokens": 60}])
@pytest.mark.parametrize("lengths", [[], [8, 16]], ids=["full", "matryoshka"])
def test_cached_gradients_are_the_same(encoder: Any, lengths: list[int], cache: dict[str, int]) -> None:
    batch = columns(encoder)
    options = {"grade_weight": 0.5, "matryoshka": lengths}
    value, grad = gradient(encoder, loss_of(encoder, **options), batch)
    again, cached = gradient(encoder, loss_of(encoder, **options, **cache), batch)
    assert again == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(cached, grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item())


def test_metrics_are_those_of_the_full_vectors(encoder: Any) -> None:
    batch = columns(encoder)
    plain, nested = loss_of(encoder), loss_of(encoder, matryoshka=[8])
    full, both = gradient(encoder, plain, batch)[0], gradient(encoder, nested, batch)[0]
    assert both > full
    assert nested.loss.metrics["loss"].item() == pytest.approx(full, rel=1e-6)
    cached = loss_of(encoder, matryoshka=[8], mini_batch_size=2)
    gradient(encoder, cached, batch)
    assert cached.loss.metrics["loss"].item() == pytest.approx(full, rel=1e-5)


def test_a_length_that_is_none_is_named(encoder: Any) -> None:
    with pytest.raises(ReasonEmbedError, match=r"loss\.matryoshka: 32 is not below the 32 dimensions"):
        loss_of(encoder, matryoshka=[8, 32])


def test_grades_of_another_shape_are_refused(encoder: Any) -> None:
    batch = columns(encoder)
    batch[2]["grades"] = batch[2]["grades"][:6]
    with pytest.raises(LossError, match=r"grades have shape \(3, 2\); allowed is \(3, 3\)"):
        gradient(encoder, loss_of(encoder, grade_weight=1.0), batch)


def test_weight_without_grades_is_refused_before_the_model(tmp_path: Path) -> None:
    recipe = check_recipe(tiny_recipe("nobody/nothing", loss={"grade_weight": 1.0}), "tiny")
    with pytest.raises(ReasonEmbedError, match=r"no row has grades.*pos_scores and neg_scores"):
        train(
            recipe, [write_rows(tmp_path / "a.jsonl", make_rows(8))], tmp_path / "run", cache=tmp_path / "c"
        )


def test_a_run_learns_from_grades_at_several_lengths(qwen3_dir: Path, tmp_path: Path) -> None:
    from reasonembed_mteb.training.metrics import read_metrics

    graded = [row | {"pos_scores": [5, 3], "neg_scores": [2, 1, 1, 1, 2]} for row in make_rows(8)]
    recipe = check_recipe(tiny_recipe(qwen3_dir, loss={"grade_weight": 0.5, "matryoshka": [8]}), "tiny")
    train(recipe, [write_rows(tmp_path / "a.jsonl", graded)], tmp_path / "run", cache=tmp_path / "cache")
    found = read_metrics(tmp_path / "run")
    assert all(row["loss_grades"] > 0 for row in found)
    assert all(row["loss"] == pytest.approx(row["loss_unweighted"] + row["loss_grades"] / 2) for row in found)


def test_two_devices_have_the_gradient_of_the_joined_batch(
    encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, documents = torch.randn(4, 8, dtype=torch.float64), torch.randn(12, 8, dtype=torch.float64)
    grades = torch.tensor([*GRADES, [5, 2, 1]], dtype=torch.float64)
    cosines = functional.cosine_similarity(query[:, None], documents.reshape(4, 3, -1), dim=2)
    joined = [(~grades.isnan().any(dim=1)).double(), grade_divergences(cosines / 0.02, grades, 1.0)]

    def part(rows: slice, world: int) -> tuple[float, torch.Tensor]:
        class Devices:
            """Knows what the other device has."""

            def __init__(self) -> None:
                self.world = world

            def rows(self, own: torch.Tensor) -> torch.Tensor:
                return next(whole for whole in joined if torch.allclose(whole[rows], own))

        monkeypatch.setattr(f"{grade_divergences.__module__}.Devices.present", lambda **_: Devices())
        loss = loss_of(encoder, grade_weight=0.7)
        loss.metrics = {"loss": torch.zeros(())}
        mine = query[rows].clone().requires_grad_()
        texts = documents.reshape(4, 3, 8)[rows].flatten(0, 1)
        value = loss._graded(mine, [texts], [grades[rows].flatten()])
        value.backward()
        assert mine.grad is not None
        # DistributedDataParallel averages.
        return value.item() / world, mine.grad / world

    whole, gradients = part(slice(0, 4), 1)
    parts = [part(rows, 2) for rows in (slice(0, 2), slice(2, 4))]
    assert sum(value for value, _ in parts) == pytest.approx(whole)
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), gradients)
