"""The search by gradient: what it may take, that its best never falls, that it goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from poisoning_data import WORDS

from reasonembed_mteb.encoding.token_rows import TokenRowEncoder
from reasonembed_mteb.errors import DataError, ReasonEmbedError, UnknownNameError
from reasonembed_mteb.robustness.poisoning import (
    BATCH_QUERIES,
    STUDY_SIZE,
    AttackSize,
    Cluster,
    GradientSearch,
    Objective,
    cluster_queries,
    first_tokens,
    read_state,
    search_key,
    usable_tokens,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZE = AttackSize(passages=2, tokens=6, iterations=12, candidates=8, seed=5)


@pytest.fixture
def search(encoder: Any) -> GradientSearch:
    return made_search(encoder, SIZE)


def made_search(encoder: Any, size: AttackSize) -> GradientSearch:
    draw = np.random.default_rng(1)
    texts = [" ".join(draw.choice(WORDS, 6)) for _ in range(20)]
    vectors = encoder.encode(texts, normalize_embeddings=True)
    clusters = cluster_queries(vectors, size)
    usable = usable_tokens(encoder.tokenizer, len(encoder[0].auto_model.get_input_embeddings().weight))
    return GradientSearch(
        TokenRowEncoder(encoder), Objective(torch.from_numpy(vectors), clusters), size, usable
    )


def first(encoder: Any, size: AttackSize = SIZE) -> list[list[int]]:
    usable = np.ones(len(encoder.tokenizer), dtype=bool)
    return [first_tokens(text, encoder.tokenizer, size, usable) for text in ("why is the sky", "short waves")]


def test_the_best_passage_never_falls_and_is_what_it_says(
    search: GradientSearch, encoder: Any, tmp_path: Path
) -> None:
    state = search.run(search.begin(first(encoder)), tmp_path / "search.json", "key")
    assert len(state.curve) == SIZE.iterations + 1
    assert all(before <= after for before, after in zip(state.curve, state.curve[1:], strict=False))
    assert state.curve[-1] > state.curve[0] + 0.02
    assert sum(state.accepted) > 2
    # An independent reference: the mean of cosines to the fixed queries, in double precision.
    model = encoder.double()
    queries = search._objective.queries.double().numpy()
    for number, cluster in enumerate(search._objective.clusters):
        for ids, expected in ((state.best, state.objective), (first(encoder), state.start)):
            batch = torch.tensor([[4, *ids[number], 0]])
            mask = torch.ones_like(batch)
            with torch.no_grad():
                vector = model({"input_ids": batch, "attention_mask": mask})["sentence_embedding"][0]
            unit = (vector / vector.norm()).numpy()
            mean = np.mean([queries[place] @ unit for place in cluster.validation])
            assert expected[number] == pytest.approx(mean, abs=1e-5)


def test_a_replacement_is_the_best_of_those_that_are_tried(search: GradientSearch, encoder: Any) -> None:
    state = search.begin(first(encoder))
    before = [list(one) for one in state.current]
    search._step(state)
    for number, (old, new) in enumerate(zip(before, state.current, strict=True)):
        changed = [place for place, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
        assert len(changed) == state.accepted[number] <= 1


def test_an_interrupted_search_ends_with_the_same_bytes(encoder: Any, tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole.json", tmp_path / "halted.json"
    search = made_search(encoder, SIZE)
    search.run(search.begin(first(encoder)), whole, "key")
    early = made_search(encoder, SIZE)
    state = early.begin(first(encoder))
    stop = early._step

    def interrupted(state: Any) -> None:
        if state.iteration == 11:
            raise KeyboardInterrupt
        stop(state)

    early._step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        early.run(state, halted, "key")
    held = read_state(halted, "key")
    assert held is not None
    assert held.iteration == 10
    late = made_search(encoder, SIZE)
    late.run(held, halted, "key")
    assert halted.read_bytes() == whole.read_bytes()
    # More iterations go on with the same search, and no other one does.
    longer = replace(SIZE, iterations=20)
    assert search_key(longer, "model") == search_key(SIZE, "model")
    assert search_key(replace(SIZE, seed=6), "model") != search_key(SIZE, "model")
    assert read_state(whole, "other key") is None
    whole.write_text(json.dumps({"key": "key", "iteration": 3}))
    assert read_state(whole, "key") is None


def test_the_gradient_names_every_usable_token_and_no_other(encoder: Any) -> None:
    search = made_search(encoder, replace(SIZE, candidates=10_000))
    current = np.array(first(encoder))
    gradients = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    named = search._named(current, np.array([1, 3]), gradients)
    table = encoder[0].auto_model.get_input_embeddings().weight.detach()
    usable = set(np.flatnonzero(usable_tokens(encoder.tokenizer, len(table))))
    for number, place in enumerate((1, 3)):
        assert set(named[number]) == usable - {current[number, place]}
        gains = (table @ gradients[number, place])[named[number]]
        assert (gains[:-1] >= gains[1:]).all()


def test_usable_tokens_are_text(encoder: Any) -> None:
    special = set(encoder.tokenizer.all_special_ids) | {0, 1, 2, 3, 4}
    usable = usable_tokens(encoder.tokenizer, 1000)
    assert not usable[list(special)].any()
    # Part of a character, and rows beyond the vocabulary, are no text.
    (part,) = encoder.tokenizer.convert_tokens_to_ids(["Ã"])
    assert not usable[part]
    assert not usable[len(encoder.tokenizer) :].any()
    assert usable[encoder.tokenizer("sky", add_special_tokens=False)["input_ids"]].all()
    every = usable_tokens(encoder.tokenizer, 1000, special_tokens=True)
    assert every.sum() == len(encoder.tokenizer)


class OneToken:
    """Stands for a tokenizer whose vocabulary is one token."""

    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    all_special_ids: ClassVar[list[int]] = []

    def __init__(self, text: str) -> None:
        """Keep the token's text."""
        self.text = text

    def __len__(self) -> int:
        """Return the size of the vocabulary."""
        return 1

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        """Return the text of each token."""
        return [self.text for _ in rows]


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        (" sky", True),
        ("the\n", True),
        ("\u00a0a", True),
        ("می\u200cخ", True),
        ("\U0001f600", True),
        ("\x00", False),
        ("a\x1b", False),
        ("\x1c", False),
        ("\x85", False),
        ("\u200d", False),
        ("\u00a0\n", False),
        ("\ufffd", False),
        ("", False),
    ],
)
def test_tokens_with_control_characters_or_nothing_to_see_are_barred(text: str, usable: bool) -> None:
    assert usable_tokens(OneToken(text), 1).tolist() == [usable]


def test_passages_begin_cut_repeated_or_masked(encoder: Any) -> None:
    tokenizer = encoder.tokenizer
    usable = usable_tokens(tokenizer, len(tokenizer))
    ids = tokenizer("why is the sky blue", add_special_tokens=False)["input_ids"]
    short, long = replace(SIZE, tokens=3), replace(SIZE, tokens=len(ids) + 4)
    assert first_tokens("why is the sky blue", tokenizer, short, usable) == ids[:3]
    assert first_tokens("why is the sky blue", tokenizer, long, usable) == (ids * 2)[: len(ids) + 4]
    tokenizer.add_special_tokens({"mask_token": "<|im_start|>"})
    masked = first_tokens("why is the sky blue", tokenizer, replace(long, special_tokens=True), usable)
    assert masked == ids + [tokenizer.mask_token_id] * 4
    with pytest.raises(DataError, match="has no usable token"):
        first_tokens("", tokenizer, short, usable)


def test_clusters_hold_every_query_once_and_keep_some_apart() -> None:
    draw = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)[:3]
    vectors = np.concatenate([one + 0.01 * draw.standard_normal((20, 8)) for one in centres]).astype("f4")
    found = cluster_queries(vectors, replace(SIZE, passages=3))
    assert sorted(np.concatenate([one.queries for one in found])) == list(range(60))
    for one in found:
        assert len({place // 20 for place in one.queries}) == 1
        assert len(one.validation) == 6
        assert sorted([*one.training, *one.validation]) == sorted(one.queries)
    # Too small a cluster to keep any apart validates by all of it.
    (alone,) = cluster_queries(vectors[:2], replace(SIZE, passages=1))
    assert alone.training.tolist() == alone.validation.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"3 passages need as many different queries.*there are 1"):
        cluster_queries(np.ones((5, 8), dtype=np.float32), replace(SIZE, passages=3))


def test_a_batch_of_a_small_cluster_is_all_of_it() -> None:
    queries = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    small, large = np.arange(10), np.arange(100)
    objective = Objective(queries, [Cluster(one, one, one) for one in (small, large)])
    draw = np.random.default_rng(0)
    assert torch.equal(objective.batch(0, draw), queries[:10].mean(dim=0))
    drawn = objective.batch(1, draw)
    assert not torch.equal(drawn, objective.batch(1, draw))
    assert not torch.equal(drawn, queries.mean(dim=0))
    chosen = np.sort(np.random.default_rng(0).choice(large, BATCH_QUERIES, replace=False))
    assert torch.allclose(objective.batch(1, np.random.default_rng(0)), queries[chosen].mean(dim=0))


def test_sizes_that_hold_nothing_are_refused(search: GradientSearch, encoder: Any) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown start of a passage 'nearst'; did you mean 'nearest'\?"
    ):
        AttackSize(start="nearst").check()
    for change in ({"passages": 0}, {"tokens": 0}, {"candidates": 0}, {"iterations": -1}, {"seed": -1}):
        with pytest.raises(ReasonEmbedError, match=f"{next(iter(change))} is"):
            replace(SIZE, **change).check()
    with pytest.raises(
        ReasonEmbedError, match="a passage of 600 tokens does not fit: the model has room for 510"
    ):
        made_search(encoder, replace(SIZE, tokens=600))


def test_the_studys_size() -> None:
    assert (STUDY_SIZE.passages, STUDY_SIZE.tokens, STUDY_SIZE.iterations, STUDY_SIZE.candidates) == (
        50,
        50,
        5_000,
        100,
    )
    assert STUDY_SIZE.start == "relevant"
    assert STUDY_SIZE.special_tokens
