"""Geometry of vectors: IsoScore beside its definition, the mean cosine, ranks, lengths, and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mteb
import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from evaluation_data import BIOLOGY

from reasonembed_mteb.errors import DataError
from reasonembed_mteb.evaluation.geometries import (
    Geometry,
    check_comparable,
    read_geometries,
    read_geometry,
    write_geometry,
)
from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.robustness.geometry import (
    gaussian_iso_score,
    iso_score,
    mean_cosine,
    measure_geometry,
    vector_shape,
    weight_norms,
)

if TYPE_CHECKING:
    from pathlib import Path


def gaussians(count: int, dimensions: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, dimensions))


def by_definition(points: Any) -> float:
    """Return IsoScore step by step (arXiv 2108.07344), by principal components."""
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    variances = (centred @ axes.T).var(axis=0, ddof=1)
    d = points.shape[1]
    variances = np.concatenate([variances, np.zeros(d - len(variances))])
    normalised = np.sqrt(d) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (d - np.sqrt(d)))
    share = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    return float((d * share - 1) / (d - 1))


def cases(count: int = 20_000) -> dict[str, Any]:
    draw = gaussians(count, 64)
    half = draw.copy()
    half[:, 32:] = 0
    return {
        "gaussian": draw,
        "half": half,
        "line": draw[:, :1] * np.arange(1.0, 65.0),
        "shifted": draw + 5.0,
        "skew": draw * np.linspace(0.1, 3, 64),
        "few": gaussians(30, 64),
    }


@pytest.mark.parametrize(
    ("name", "score"), [("gaussian", 0.9967), ("half", 0.4912), ("line", 0.0), ("shifted", 0.9966)]
)
def test_isoscore_of_known_cases(name: str, score: float) -> None:
    assert iso_score(cases()[name]) == pytest.approx(score, abs=1e-3)


def test_isoscore_is_its_definition() -> None:
    for points in cases(500).values():
        assert iso_score(points) == pytest.approx(by_definition(points), abs=1e-6)
        # Rotations, shifts and scales do not matter.
        turn, _ = np.linalg.qr(gaussians(64, 64, 1))
        assert iso_score(3 * points @ turn - 7) == pytest.approx(by_definition(points), abs=1e-6)


@pytest.mark.parametrize(
    ("count", "dimensions", "score"),
    [(200, 384, 0.34), (547, 384, 0.58), (2000, 384, 0.84), (10_000, 384, 0.96), (2000, 4096, 0.33)],
)
def test_a_gaussian_of_few_vectors_scores_less(count: int, dimensions: int, score: float) -> None:
    assert gaussian_iso_score(count, dimensions) == pytest.approx(score, abs=0.01)


def test_the_gaussians_score_is_what_gaussians_score() -> None:
    for count, dimensions in ((50, 16), (200, 96), (1000, 8)):
        drawn = [iso_score(gaussians(count, dimensions, seed)) or 0 for seed in range(20)]
        assert gaussian_iso_score(count, dimensions) == pytest.approx(np.mean(drawn), abs=0.01)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    points = gaussians(100, 16) + 0.3
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert mean_cosine(points) == pytest.approx(float((unit @ unit.T).mean()), abs=1e-12)
    assert mean_cosine(np.vstack([points, np.zeros((1, 16))])) < mean_cosine(points)


def test_a_shape_has_ranks_and_lengths() -> None:
    shape = vector_shape(cases()["half"].astype(np.float32) * 2)
    assert (shape.vectors, shape.dimensions) == (20_000, 64)
    assert shape.effective_rank == pytest.approx(32, abs=0.1)
    assert shape.norm_mean == pytest.approx(2 * np.sqrt(32), rel=0.02)
    assert shape.norm_deviation > 0
    one = vector_shape(np.ones((5, 3)))
    assert (one.isoscore, one.effective_rank, one.norm_deviation) == (None, None, 0.0)
    assert one.mean_cosine == pytest.approx(1)


@pytest.mark.parametrize(
    "vectors", [np.ones((1, 4)), np.ones((4, 1)), np.ones(4), np.array([[1.0, np.nan], [0, 1]])]
)
def test_vectors_without_a_geometry_are_refused(vectors: Any) -> None:
    with pytest.raises(DataError, match=r"needs at least 2 vectors|NaN or infinite"):
        vector_shape(vectors)


def test_weights_are_measured_by_their_largest_singular_value() -> None:
    torch.manual_seed(0)
    layers = {
        "small": torch.nn.Linear(8, 5),
        "large": torch.nn.Linear(300, 200),
        "square": torch.nn.Linear(150, 150, dtype=torch.bfloat16),
        "pooler": torch.nn.Linear(9, 9),
        "norm": torch.nn.LayerNorm(8),
    }
    found = weight_norms(torch.nn.ModuleDict(layers))
    wanted = [
        np.linalg.norm(layers[n].weight.detach().double().numpy(), ord=2)
        for n in ("small", "large", "square")
    ]
    assert found is not None
    assert found.layers == 3
    assert found.mean == pytest.approx(np.mean(wanted), rel=1e-5)
    assert (found.largest, found.smallest) == pytest.approx((max(wanted), min(wanted)), rel=1e-5)
    assert found.last == pytest.approx(wanted[-1], rel=1e-5)
    assert found.deviation == pytest.approx(np.std(wanted), rel=1e-4)
    assert weight_norms(torch.nn.LayerNorm(3)) is None


@pytest.mark.parametrize("size", [8, 200])
def test_weights_of_any_size_have_a_norm(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(size, size + 1, dtype=torch.float64)
    own = np.linalg.norm(layer.weight.detach().numpy(), ord=2)
    for scale in (1e-30, 1.0, 1e30):
        scaled = torch.nn.Linear(size, size + 1)
        scaled.weight.data = (layer.weight.data * scale).float()
        found = weight_norms(scaled)
        assert found is not None
        assert found.last == pytest.approx(own * scale, rel=1e-4)
    torch.nn.init.zeros_(layer.weight)
    found = weight_norms(layer)
    assert found is not None
    assert found.largest == 0.0

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise scipy.sparse.linalg.ArpackNoConvergence("no convergence", np.array([]), np.array([]))

    torch.nn.init.ones_(layer.weight)
    monkeypatch.setattr(scipy.sparse.linalg, "svds", fails)
    found = weight_norms(layer)
    assert found is not None
    assert found.last == pytest.approx((size * (size + 1)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_their_layer(value: float) -> None:
    model = torch.nn.ModuleDict({"query": torch.nn.Linear(4, 4)})
    model["query"].weight.data[1, 2] = value
    with pytest.raises(DataError, match="the weights of query hold NaN or infinite values"):
        weight_norms(model)


@pytest.mark.usefixtures("registered", "data")
def test_a_models_documents_are_measured_from_the_store(bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    task: Any = mteb.get_task(BIOLOGY)
    (found,) = measure_geometry(
        resolve_model(str(bert)), [task], tmp_path / "vectors", device="cpu", progress=False
    )
    task.load_data()
    texts = list(task.dataset["default"]["standard"]["corpus"]["text"])
    model = SentenceTransformer(str(bert), device="cpu")
    wanted = vector_shape(model.encode(texts))
    assert found.shape.vectors == 40
    for name in ("isoscore", "mean_cosine", "effective_rank", "norm_mean"):
        assert getattr(found.shape, name) == pytest.approx(getattr(wanted, name), rel=1e-3)
    assert found.weights is not None
    assert found.weights.layers == 6
    fewer = [
        measure_geometry(
            resolve_model(str(bert)), [task], tmp_path / "vectors", most=20, seed=seed, progress=False
        )[0]
        for seed in (0, 0, 1)
    ]
    assert [one.shape.vectors for one in fewer] == [20] * 3
    assert fewer[0] == fewer[1] != fewer[2]
    with pytest.raises(DataError, match=r"baseline-bm25s gives no dense vectors"):
        measure_geometry(resolve_model("bm25"), [task], tmp_path / "vectors", progress=False)


@pytest.mark.usefixtures("registered", "data")
def test_documents_are_measured_at_the_tasks_length(bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    task: Any = mteb.get_task(BIOLOGY)
    task.row = replace(task.row, max_tokens=2)
    (found,) = measure_geometry(
        resolve_model(str(bert)), [task], tmp_path / "vectors", device="cpu", progress=False
    )
    model = SentenceTransformer(str(bert), device="cpu")
    task.load_data()
    texts = list(task.dataset["default"]["standard"]["corpus"]["text"])
    whole = vector_shape(model.encode(texts))
    model.max_seq_length = 2
    cut = vector_shape(model.encode(texts))
    assert found.shape.mean_cosine == pytest.approx(cut.mean_cosine, rel=1e-4)
    assert abs(whole.mean_cosine - cut.mean_cosine) > 0.001


def geometry(model: str, count: int) -> Geometry:
    return Geometry(model, "1", "Task", 0, vector_shape(gaussians(count, 4)))


def test_unequal_numbers_of_vectors_are_not_compared() -> None:
    check_comparable([geometry("a", 10), geometry("b", 10)])
    with pytest.raises(DataError, match=r"unequal numbers of vectors \(a over 10, b over 1,000\)"):
        check_comparable([geometry("a", 10), geometry("b", 1000)])


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = geometry("a", 10)
    file = write_geometry(tmp_path, one)
    assert read_geometry(file) == one
    text = file.read_text(encoding="utf-8")
    for damage in ("", text.replace('"isoscore"', '"iso"'), text.replace('"format": 1', '"format": 2')):
        file.write_text(damage, encoding="utf-8")
        found, problems = read_geometries([tmp_path])
        assert found == []
        assert "is no record of geometry of this version" in problems[0]
