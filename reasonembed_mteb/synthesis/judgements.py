"""The annotator's judgements as chats, on which any SFT tool can tune an annotator of one's own."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reasonembed_mteb.endpoints.endpoint import request_hash
from reasonembed_mteb.errors import DataError
from reasonembed_mteb.files import json_line, replacing
from reasonembed_mteb.llm.cache import AnswerCache
from reasonembed_mteb.llm.templates import without_thought
from reasonembed_mteb.synthesis.annotate import UNJUDGED, asked_pairs, labelled, parse_label
from reasonembed_mteb.synthesis.pipeline import ANSWERS, check_names
from reasonembed_mteb.synthesis.step import Run, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reasonembed_mteb.endpoints.endpoint import Request
    from reasonembed_mteb.synthesis.config import Config, SubsetSection
    from reasonembed_mteb.synthesis.shards import Row
    from reasonembed_mteb.synthesis.step import Client

# Answers looked up at a time.
_PART = 512


def export_judgements(config: Config, output: Path) -> tuple[int, int]:
    """Write every judgement that counted as a chat: ``{"messages": [..., {"role": "assistant", ...}]}``.

    A judgement that could not be read, or that others of the same pair outvoted, is left out.

    Args:
        config: Of a run whose step ``annotate`` is finished.
        output: JSON Lines.

    Returns:
        How many were written, and how many were left out.

    Raises:
        DataError: If the step is not finished with the present settings, or there is nothing to write.
        ReasonEmbedError: If the file cannot be written.
    """
    check_names(config)
    run = Run(config, make_client=_nobody)
    written = left_out = 0
    with (
        replacing(output) as part,
        part.open("w", encoding="utf-8", newline="\n") as stream,
        AnswerCache(config.output_folder / ANSWERS) as cache,
    ):
        for subset in config.subset:
            for chat in _chats(run, subset, cache):
                written, left_out = written + (chat is not None), left_out + (chat is None)
                stream.write("" if chat is None else json_line(chat))
        if not written:
            msg = f"{config.output_folder} has no judgement that could be read; run the step annotate first"
            raise DataError(msg)
    return written, left_out


def _nobody(name: str) -> Client:
    msg = f"nothing is asked of {name} here"
    raise DataError(msg)


def _chats(run: Run, subset: SubsetSection, cache: AnswerCache) -> Iterator[Row | None]:
    """Give the chat of each judgement, None for one that is left out."""
    need(labelled(run, subset), "annotate", subset)
    if "labels" in run.own_parts(subset):
        # Whoever brings labels has no judgements.
        return
    endpoint = run.config.endpoint(run.config.annotate.endpoint)
    requests = _labelled_requests(run, subset)
    while block := list(islice(requests, _PART)):
        hashes = [request_hash(endpoint.body(request), request.n_sample) for request, _ in block]
        found = cache.find(list(dict.fromkeys(hashes)))
        for (request, label), digest in zip(block, hashes, strict=True):
            reply = found.get(digest)
            text = None if reply is None or reply.error is not None else reply.text
            if text is None or label == UNJUDGED or parse_label(text) != label:
                yield None
                continue
            said = {"role": "assistant", "content": without_thought(text)}
            yield {"messages": [*request.messages, said]}


def _labelled_requests(run: Run, subset: SubsetSection) -> Iterator[tuple[Request, int]]:
    """Give each question with the label that its pair has come to."""
    rows = zip(asked_pairs(run, subset), labelled(run, subset).rows(), strict=True)
    for pairs, row in rows:
        labels = dict(zip(row["documents"], row["labels"], strict=True))
        for document, request in pairs:
            yield request, labels[document]
