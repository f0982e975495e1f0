"""The batch that the loss gets: prefixes, lengths, packed documents, extra keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_data import checked_rows as rows

from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.training.collator import GroupCollator, document_id, row_instruction

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = "Instruct: {instruction}\nQuery: "


@pytest.fixture(scope="module")
def model(qwen3_dir: Path) -> ReasonEmbed:
    return ReasonEmbed(str(qwen3_dir), device="cpu")


def collator(model: ReasonEmbed, **options: Any) -> GroupCollator:
    defaults = {"groups": {"biology": 4, "pony": 2}, "seed": 1, "template": TEMPLATE, "query_tokens": 64}
    return GroupCollator(preprocess_fn=model.preprocess, **{**defaults, **options})


def test_columns_reach_the_loss_apart(model: ReasonEmbed) -> None:
    # The trap: features are chosen by the start of their names, so `query` would swallow `query_reasoning`.
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer

    batch = collator(model)(rows())
    assert batch.pop("subset") == "biology"
    (query, reasoning, documents), _ = SentenceTransformerTrainer.collect_features(None, batch)  # type: ignore[arg-type]
    own = {"input_ids", "attention_mask"}
    assert {*query} - own <= {"positive_ids", "modality"}
    assert {*reasoning} - own <= {"has_reasoning", "modality"}
    assert {*documents} - own <= {"document_ids", "modality"}
    assert (len(query["input_ids"]), len(reasoning["input_ids"]), len(documents["input_ids"])) == (4, 4, 16)


def test_no_chat_template_is_applied(model: ReasonEmbed) -> None:
    assert model.tokenizer.chat_template
    batch = collator(model)(rows(1))
    text = model.tokenizer.decode(batch["query_input_ids"][0])
    assert text == f"{TEMPLATE.format(instruction=rows()[0]['instruction'])}{rows()[0]['query']}"


def test_both_queries_have_the_same_instruction(model: ReasonEmbed) -> None:
    texts = collator(model).texts(rows())
    prefix = TEMPLATE.format(instruction="Given a post, retrieve passages.")
    assert texts["query"] == [prefix + row["query"] for row in rows()]
    assert texts["reasoning_query"] == [prefix + row["reasoning"] for row in rows()]
    assert not any(text.startswith("Instruct") for text in texts["documents"])


def test_without_template_nothing_is_added(model: ReasonEmbed) -> None:
    texts = collator(model, template="", document_prefix="passage: ").texts(rows())
    assert texts["query"] == [row["query"] for row in rows()]
    assert all(text.startswith("passage: ") for text in texts["documents"])


def test_documents_are_packed_row_by_row_positive_first(model: ReasonEmbed) -> None:
    texts = collator(model).texts(rows())["documents"]
    for index, row in enumerate(rows()):
        group = texts[index * 4 : index * 4 + 4]
        assert group[0] in row["positives"]
        assert set(group[1:]) < set(row["negatives"])
        assert len(set(group)) == 4


def test_groups_follow_subset_and_epoch_not_the_batch(model: ReasonEmbed) -> None:
    made = collator(model)
    both = made.texts(rows(4))["documents"]
    assert made.texts(rows(4)[2:])["documents"] == both[8:]
    made.epoch = 1
    assert made.texts(rows(4))["documents"] != both
    assert len(made.texts(rows(4, "pony"))["documents"]) == 8


def test_lengths_hold_in_training_and_are_not_kept(model: ReasonEmbed) -> None:
    before = model.max_seq_length
    batch = collator(model, query_tokens=9, document_tokens=5)(rows())
    assert batch["query_input_ids"].shape[1] == batch["reasoning_query_input_ids"].shape[1] == 9
    assert batch["documents_input_ids"].shape[1] == 5
    assert model.max_seq_length == before


def test_instructions_that_leave_no_room_for_a_query_are_refused(model: ReasonEmbed) -> None:
    made = rows(2)
    prefixes = collator(model).prefixes(made)
    length = len(model.tokenizer(prefixes[0])["input_ids"])
    with pytest.raises(
        ReasonEmbedError, match=rf"subset biology: {length} tokens .* data.query_tokens={length}"
    ):
        collator(model, query_tokens=length).check_room(made)
    collator(model, query_tokens=length + 1).check_room(made)
    # A row that has room is enough; without a template nothing stands before a query.
    collator(model, query_tokens=length).check_room([*made, made[0] | {"instruction": "Find"}])
    collator(model, query_tokens=8, template="").check_room(made)


def test_padding_is_on_the_right(model: ReasonEmbed) -> None:
    long = rows(2)
    long[1]["query"] *= 3
    mask = collator(model, query_tokens=512)(long)["query_attention_mask"][0]
    assert mask[0] == 1
    assert mask[-1] == 0


def test_rows_without_reasoning_are_marked(model: ReasonEmbed) -> None:
    mixed = rows(3)
    mixed[1]["reasoning"] = None
    batch = collator(model)(mixed)
    assert batch["reasoning_query_has_reasoning"].tolist() == [True, False, True]
    ids = batch["query_input_ids"][1][batch["query_attention_mask"][1] == 1]
    stand_in = batch["reasoning_query_input_ids"][1][batch["reasoning_query_attention_mask"][1] == 1]
    assert torch.equal(ids, stand_in)


def test_plain_batches_have_two_columns(model: ReasonEmbed) -> None:
    batch = collator(model, with_reasoning=False)(rows())
    assert not any(name.startswith("reasoning") for name in batch)


def test_equal_documents_have_equal_ids(model: ReasonEmbed) -> None:
    shared = rows(2)
    shared[1]["negatives"] = [shared[0]["positives"][0]]
    batch = collator(model, groups={"biology": 2}, document_prefix="d: ")(shared)
    assert batch["documents_document_ids"].dtype == torch.int64
    assert batch["documents_document_ids"][3] == document_id(shared[0]["positives"][0])
    # Also those positives that were not drawn.
    assert batch["query_positive_ids"].tolist() == [
        [document_id(t) for t in row["positives"]] for row in shared
    ]
    shared[1]["positives"] = shared[1]["positives"][:1]
    ids = collator(model, groups={"biology": 2})(shared)["query_positive_ids"]
    assert ids.shape == (2, 2)
    assert ids[1, 0] == ids[1, 1]


@pytest.mark.parametrize(
    ("subset", "own", "given", "expected"),
    [
        ("biology", "Mine.", {"biology": "Given."}, "Mine."),
        ("biology", None, {"biology": "Given."}, "Given."),
        ("biology", None, {}, "Given a Biology post, retrieve relevant passages that help answer the post."),
        ("my_own", None, {}, ""),
    ],
)
def test_instructions_have_an_order(
    subset: str, own: str | None, given: dict[str, str], expected: str
) -> None:
    assert row_instruction({"instruction": own, "subset": subset}, given) == expected


def test_no_instruction_is_no_prefix(model: ReasonEmbed) -> None:
    row = rows(1, "my_own", instruction=None)
    assert collator(model, groups={"my_own": 2}).texts(row)["query"] == [row[0]["query"]]


def test_a_row_that_comes_again_draws_other_documents(model: ReasonEmbed) -> None:
    made = collator(model)
    first, same = (made.texts([row | again for row in rows(8)]) for again in ({}, {"pass": 0}))
    assert first == same
    again = made.texts([row | {"pass": 1} for row in rows(8)])
    assert again["query"] == first["query"]
    changed = sum(a != b for a, b in zip(first["documents"], again["documents"], strict=True))
    assert changed > 10
