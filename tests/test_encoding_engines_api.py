"""Vectors of a server: the model's own, whatever the server takes; its faults, each by name."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from engine_data import Served, served_encoder, serving
from stub_server import Reply, failure

from reasonembed_mteb.encoding.engines.api import TEXTS
from reasonembed_mteb.encoding.engines.engine import EngineError
from reasonembed_mteb.encoding.engines.requests import read_vectors
from reasonembed_mteb.encoding.output import TextsError
from reasonembed_mteb.endpoints.endpoint import EndpointError
from reasonembed_mteb.endpoints.retries import AttemptError
from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from pathlib import Path

    from stub_server import Seen, StubServer

WORDS = "Why is the sky blue? Rayleigh scattering sends short waves to all sides; long ones pass. "
TEXTS_GIVEN = ["Why is the sky blue?", "", WORDS * 9, "x", "naïve 短い text \U0001f600", WORDS]
LENGTH = 100


@pytest.fixture(scope="module")
def model(qwen3_dir: Path) -> Any:
    """Return the checkpoint with its weights, at a length that some texts pass."""
    from reasonembed_mteb import ReasonEmbed

    loaded = ReasonEmbed(str(qwen3_dir), device="cpu")
    loaded.attn = "padded"
    return loaded


@pytest.fixture(scope="module")
def expected(model: Any) -> Any:
    before, model.max_seq_length = model.max_seq_length, LENGTH
    vectors = model.encode(TEXTS_GIVEN, prompt="Query: ", show_progress_bar=False)
    counts = model.last_token_counts
    model.max_seq_length = before
    return vectors, counts


@pytest.fixture(scope="module")
def skeleton(qwen3_dir: Path, model: Any) -> Any:
    """Return MTEB's encoder of the checkpoint without weights; each test gives it an engine."""
    with serving(Served(model)) as server:
        return served_encoder(qwen3_dir, server)


@pytest.fixture
def connect(skeleton: Any, qwen3_dir: Path) -> Any:
    """Return a function that lets a server compute for the checkpoint."""
    from reasonembed_mteb.models.engines import EngineChoice, make_engine, model_facts

    skeleton.model.engine = None
    skeleton.model.encoding_stats.reset()

    def call(server: StubServer, **choice: Any) -> Any:
        options = {"base_url": server.base_url, "served_model": "small", "backoff": 0.001, "timeout": 10.0}
        facts = model_facts(skeleton.model, str(qwen3_dir), None)
        skeleton.model.engine = make_engine(facts, EngineChoice("api", **options | choice))
        return skeleton

    return call


def encode(encoder: Any, texts: list[str] = TEXTS_GIVEN, **options: Any) -> Any:
    """Encode through MTEB's encoder's own model, at the length of this file."""
    options = {"prompt": "Query: ", "show_progress_bar": False} | options
    before, encoder.model.max_seq_length = encoder.model.max_seq_length, LENGTH
    try:
        return encoder.model.encode(texts, **options)
    finally:
        encoder.model.max_seq_length = before
        encoder.model.engine.close()


@pytest.mark.parametrize("takes_base64", [True, False])
def test_vectors_are_the_models_own(connect: Any, model: Any, expected: Any, takes_base64: bool) -> None:
    served = Served(model, takes_base64=takes_base64)
    with serving(served) as server:
        encoder = connect(server)
        found = encode(encoder)
    vectors, counts = expected
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(encoder.model.last_token_counts, counts)
    assert encoder.model.encoding_stats.truncated == (counts > LENGTH).sum() > 0
    assert encoder.model.encoding_stats.tokens == np.minimum(counts, LENGTH).sum()
    # Whatever is longer is cut before it is sent.
    assert max(len(ids) for inputs in served.sent for ids in inputs if isinstance(ids, list)) == LENGTH
    assert next(encoder.model.parameters()).is_meta


def test_a_server_of_texts_gets_them_cut(connect: Any, model: Any, expected: Any) -> None:
    served = Served(model, takes_tokens=False)
    with serving(served) as server:
        encoder = connect(server)
        found = encode(encoder)
    sent = [
        one for inputs in served.sent for one in inputs if isinstance(one, str) and one.startswith("Query: ")
    ]
    lengths = [len(model.tokenizer(text)["input_ids"]) for text in sent]
    assert max(lengths) in (LENGTH, LENGTH - 1)
    whole = expected[1] <= LENGTH
    np.testing.assert_allclose(found[whole], expected[0][whole], atol=1e-6)
    assert encoder.model.engine.identity["input"] == "text"


@pytest.mark.parametrize("address", ["{}", "{}/", "{}/v1", "{}/v1/", "{}/v1/embeddings", "{}/embeddings"])
def test_the_address_may_be_given_in_any_way(address: str) -> None:
    from reasonembed_mteb.models.engines import EngineChoice

    choice = EngineChoice("api", address.format("http://host:8000"))
    assert choice.endpoint("m").base_url == "http://host:8000/v1"


def test_no_list_of_models_is_needed(connect: Any, model: Any) -> None:
    with serving(Served(model), pages={"/api/version": {"version": "1.2.3"}}) as server:
        encoder = connect(server, base_url=server.base_url.removesuffix("/v1"))
        assert encode(encoder, ["a"]).shape == (1, 32)
    assert encoder.model.engine.identity["version"] == "1.2.3"


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ({"/info": {"version": "2.0", "model_id": "m"}}, "2.0"),
        ({"/props": {"build_info": "b1-abc"}}, "b1-abc"),
        ({"/v1/openapi.json": {"info": {"version": "0.0.78"}}}, "0.0.78"),
        ({"/version": ["no", "object"], "/info": {"version": 3}}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_a_version_is_found_where_servers_say_it(pages: dict[str, object], said: str) -> None:
    from reasonembed_mteb.encoding.engines.probing import server_version
    from reasonembed_mteb.endpoints.endpoint import Endpoint

    with serving(lambda _: failure(500, "not asked"), pages=pages) as server:
        assert server_version(Endpoint(server.base_url, "m")) == said
        assert server.total == 0


def test_mtebs_client_gets_the_same_vectors(connect: Any, model: Any) -> None:
    from mteb import TaskMetadata  # noqa: F401 - the package must be whole
    from mteb.models import OpenAIAPIEncodeWrapper

    with serving(Served(model, takes_base64=False)) as server:
        theirs = OpenAIAPIEncodeWrapper(
            server.base_url.removesuffix("/v1"), "small", use_chat_template=False, modalities=["text"]
        )
        reference = np.asarray(theirs._get_embeddings(TEXTS_GIVEN[2:]))
        encoder = connect(server)
        found = encoder.model.encode(TEXTS_GIVEN[2:], show_progress_bar=False)
        encoder.model.engine.close()
    np.testing.assert_allclose(found, reference, atol=1e-6)


def test_short_vectors_are_cut_as_torch_cuts_them(connect: Any, model: Any) -> None:
    with serving(Served(model)) as server:
        encoder = connect(server)
        found = encode(encoder, truncate_dim=8, normalize_embeddings=True)
    model.max_seq_length = LENGTH
    ours = model.encode(
        TEXTS_GIVEN, prompt="Query: ", truncate_dim=8, normalize_embeddings=True, show_progress_bar=False
    )
    model.max_seq_length = 8192
    np.testing.assert_allclose(found, ours, atol=1e-6)


def test_many_requests_are_on_their_way(connect: Any, model: Any) -> None:
    served = Served(model)

    def slow(seen: Seen) -> Reply:
        from dataclasses import replace

        return replace(served(seen), delay=0.05)

    with serving(slow) as server:
        encoder = connect(server, concurrency=3, batch_tokens=16)
        encode(encoder, [f"text {place}" for place in range(12)])
        assert server.most_at_once == 3


def test_trouble_that_passes_is_waited_for(connect: Any, model: Any, expected: Any) -> None:
    served = Served(model)
    trouble = {
        1: failure(429, "slow down", headers={"Retry-After": "0"}),
        2: failure(503, "loading"),
        3: failure(500, "a bug"),
    }

    def script(seen: Seen) -> Reply:
        return trouble.get(seen.attempt) or served(seen)

    with serving(script) as server:
        encoder = connect(server)
        np.testing.assert_allclose(encode(encoder), expected[0], atol=1e-6)
        assert encoder.model.engine.usage.retries >= 3


def test_a_wait_that_is_asked_for_is_heeded(connect: Any, model: Any) -> None:
    import time

    served, times = Served(model), []

    def script(seen: Seen) -> Reply:
        times.append(time.monotonic())
        return failure(429, "slow down", headers={"Retry-After": "0.3"}) if len(times) == 1 else served(seen)

    with serving(script) as server:
        connect(server)
    assert times[1] - times[0] >= 0.3


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    connect: Any, model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Served(model), key="sk-of-the-server-123456") as server:
        monkeypatch.setenv("MY_KEY", "sk-of-the-server-123456")
        encoder = connect(server, api_key_env="MY_KEY")
        assert encode(encoder, ["a"]).shape == (1, 32)
        assert "sk-of" not in str(encoder.model.engine.identity)
        monkeypatch.setenv("MY_KEY", "sk-of-someone-else-9876")
        with pytest.raises(EndpointError, match="MY_KEY holds another's") as refused:
            connect(server, api_key_env="MY_KEY")
    assert "sk-of" not in str(refused.value)
    assert "sk-of" not in caplog.text


def test_a_server_of_small_batches_gets_texts_alone(connect: Any, model: Any, expected: Any) -> None:
    served = Served(model, most_texts=3)
    with serving(served) as server:
        np.testing.assert_allclose(encode(connect(server)), expected[0], atol=1e-6)
    assert [len(inputs) for inputs in served.sent[-5:]] == [1] * 5
    assert max(map(len, served.sent)) <= TEXTS


def test_a_text_that_is_refused_is_named(connect: Any, model: Any) -> None:
    served = Served(model)
    unwanted = model.tokenizer("Query: x")["input_ids"]

    def script(seen: Seen) -> Reply:
        return failure(400, "no") if unwanted in seen.body["input"] else served(seen)

    with (
        serving(script) as server,
        pytest.raises(TextsError, match=r"no vector from http.*rejected") as raised,
    ):
        encode(connect(server))
    assert raised.value.positions == [3]


def wider(vectors: Any) -> Any:
    return np.pad(vectors, ((0, 0), (0, 1)))


def broken(vectors: Any) -> Any:
    return np.where(np.arange(vectors.shape[1]) == 3, np.nan, vectors).astype(np.float32)


FAULTS = {
    "vectors of 33 dimensions": {"change": wider},
    "NaN or infinite": {"change": broken},
    "2 vectors for 3 texts": {"change": lambda vectors: vectors[: max(len(vectors) - 1, 1)]},
    "different texts the same vector": {"change": lambda vectors: np.repeat(vectors[:1], len(vectors), 0)},
    "vectors that are zero": {"change": np.zeros_like},
    "holds no vectors": {"change": lambda vectors: vectors[:, None, :], "takes_base64": False},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_the_start(connect: Any, model: Any, fault: str) -> None:
    with serving(Served(model, **FAULTS[fault])) as server, pytest.raises(EngineError, match=fault):
        connect(server, max_attempts=1)


def test_a_fault_that_comes_later_is_found(connect: Any, model: Any) -> None:
    served = Served(model)
    with serving(served) as server:
        encoder = connect(server, max_attempts=1)
        encode(encoder, ["a", "b", "c"])
        for fault in [*list(FAULTS)[:3], "vectors that are zero"]:
            served.change = FAULTS[fault]["change"]
            said = fault.removesuffix(" for 3 texts")
            with pytest.raises((EngineError, TextsError), match=said):
                encode(encoder, ["a", "b", "c"])


def _asking(before: set[threading.Thread]) -> list[str]:
    """Return the threads of clients that were not there before."""
    return [one.name for one in set(threading.enumerate()) - before if one.name == "llm-client"]


def test_a_closed_engine_has_no_thread_and_opens_again(connect: Any, model: Any) -> None:
    with serving(Served(model)) as server:
        encoder = connect(server)
        before = set(threading.enumerate())
        for _ in range(2):
            encoder.model.encode(["a", "b"], show_progress_bar=False)
            assert _asking(before) == ["llm-client"]
            encoder.model.engine.close()
            assert not _asking(before)
        # There is nothing to close twice.
        encoder.model.engine.close()


def test_what_fails_half_way_leaves_no_thread(connect: Any, model: Any) -> None:
    served = Served(model)
    with serving(served) as server:
        encoder = connect(server, max_attempts=1)
        before = set(threading.enumerate())
        encoder.model.encode(["a", "b"], show_progress_bar=False)
        served.change = FAULTS["vectors of 33 dimensions"]["change"]
        with pytest.raises(EngineError):
            encoder.model.encode(["a", "b"], show_progress_bar=False)
        assert not _asking(before)


def test_vectors_of_another_length_are_said_and_set_right(
    connect: Any, model: Any, expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(Served(model, change=lambda vectors: 3 * vectors)) as server:
        found = encode(connect(server))
    assert "not normalised (their length is 3)" in caplog.text
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "most"), [(True, 30), (False, 30), (True, LENGTH - 1), (False, LENGTH - 4)]
)
def test_texts_that_are_cut_without_a_word_are_found(
    connect: Any, model: Any, counts: bool, most: int
) -> None:
    # A server of its own length may cut one token, and one of half the length half the text.
    with serving(Served(model, most_tokens=most, counts=counts)) as server:
        encoder = connect(server)
        with pytest.raises(EngineError, match=f"silently cuts a text of {LENGTH} tokens") as error:
            encode(encoder)
    # What it counts is the plainest reason, and the only one where it leaves out the middle. One that has cut
    # a known text before is not believed.
    trusted = counts and most == LENGTH - 1
    assert (f"it counts {most} tokens" if trusted else "leaves the vector as it is") in str(error.value)


def test_unit_vectors_of_a_model_whose_lengths_count_are_refused(
    skeleton: Any, qwen3_dir: Path, model: Any
) -> None:
    from reasonembed_mteb.models.engines import EngineChoice, make_engine, model_facts

    facts = model_facts(skeleton.model, str(qwen3_dir), None)
    with serving(Served(model)) as server:
        choice = EngineChoice("api", base_url=server.base_url, served_model="small")
        # By cosine they say the same.
        make_engine(replace(facts, normalized=False), choice).close()
        with pytest.raises(EngineError, match="normalises its vectors, and those of"):
            make_engine(replace(facts, normalized=False, compared_by_dot=True), choice)


@pytest.mark.parametrize("takes_tokens", [True, False])
def test_a_context_that_is_too_short_is_named(
    connect: Any, model: Any, expected: Any, takes_tokens: bool
) -> None:
    served = Served(model, takes_tokens=takes_tokens)
    most = LENGTH

    def script(seen: Seen) -> Reply:
        inputs = seen.body["input"]
        ids = [one if isinstance(one, list) else model.tokenizer(one)["input_ids"] for one in inputs]
        if max(map(len, ids)) > most:
            return failure(400, f"This model's maximum context length is {most} tokens.")
        return served(seen)

    with serving(script) as server:
        # One that is just long enough will do: no known text is longer.
        whole = expected[1] <= LENGTH
        np.testing.assert_allclose(encode(connect(server))[whole], expected[0][whole], atol=1e-6)
        most = LENGTH - 4
        with pytest.raises(EngineError, match=f"takes no text of {LENGTH} tokens"):
            encode(connect(server))


def test_other_special_tokens_are_said(connect: Any, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = Served(model)

    def script(seen: Seen) -> Reply:
        from dataclasses import replace

        body = seen.body
        if isinstance(body["input"][0], str):
            ids = [[*model.tokenizer(text)["input_ids"], 0] for text in body["input"]]
            return served(replace(seen, body=body | {"input": ids}))
        return served(seen)

    with serving(script) as server:
        encoder = connect(server)
    assert "as other tokens than the tokenizer" in caplog.text
    assert encoder.model.engine.identity["input"] == "text"


def test_no_server_is_an_error_with_its_address(connect: Any, model: Any) -> None:
    with serving(Served(model)) as server:
        pass
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*cannot be reached"):
        connect(server, max_attempts=2)


def test_a_model_that_is_not_served_is_named(connect: Any) -> None:
    missing = failure(404, "no model 'small'")
    with serving(lambda _: missing) as server, pytest.raises(EndpointError, match="cannot serve 'small'"):
        connect(server)


@pytest.mark.parametrize(
    "raw",
    [b"no JSON", b"{}", b'{"data": [{"index": 0}]}', b'{"data": [{"index": 0, "embedding": "%"}]}', b"[]"],
)
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(AttemptError, match="holds no vectors of one length"):
        read_vectors(raw)


@pytest.mark.parametrize("places", [[0, 0], [1, 2], [0, None], ["0", "1"]])
def test_places_that_are_not_each_there_once_are_refused(places: list[Any]) -> None:
    data = [{"embedding": [1.0]} | ({} if place is None else {"index": place}) for place in places]
    with pytest.raises(AttemptError, match="holds no vectors"):
        read_vectors(json.dumps({"data": data}).encode())


def test_vectors_without_places_are_in_their_order() -> None:
    body = {"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}
    assert read_vectors(json.dumps(body).encode()).vectors.tolist() == [[1.0], [2.0]]


def test_a_copy_is_an_engine_of_its_own(connect: Any, expected: Any, model: Any) -> None:
    with serving(Served(model)) as server:
        encoder = connect(server)
        copied = pickle.loads(pickle.dumps(encoder.model))
        encoder.model.engine.close()
        copied.max_seq_length = LENGTH
        found = copied.encode(TEXTS_GIVEN, prompt="Query: ", show_progress_bar=False)
        assert copied.engine is not encoder.model.engine
        assert copied.engine.identity == encoder.model.engine.identity
        copied.engine.close()
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_an_endpoint_that_dies_is_gone_on_with(connect: Any, model: Any, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from reasonembed_mteb.store.encoder import StoredEncoder

    served = Served(model)
    asked: list[str] = []
    task: Any = SimpleNamespace(name="Own", type="Retrieval", prompt="Find it.", modalities=["text"])
    texts = [f"document number {place}" for place in range(40)]

    def script(seen: Seen) -> Reply:
        if state["dies_after"] is not None and len(asked) >= state["dies_after"]:
            return Reply(b"", drop=True)
        reply = served(seen)
        asked.extend(set(map(str, seen.body["input"])) & documents)
        return reply

    documents = {str(model.tokenizer(text)["input_ids"]) for text in texts}
    state: dict[str, Any] = {"dies_after": None}

    def run() -> Any:
        encoder = connect(server, max_attempts=2)
        stored = StoredEncoder(encoder, tmp_path, chunk_size=8)
        try:
            from mteb.types import PromptType

            return stored.encode([{"text": texts}], task_metadata=task, prompt_type=PromptType.document)
        finally:
            encoder.model.engine.close()

    with serving(script) as server:
        state["dies_after"] = 20
        with pytest.raises(ReasonEmbedError, match=r"breaks off its answer|cannot be reached"):
            run()
        first = len(asked)
        state["dies_after"] = None
        found = run()
    assert first >= 20
    # What was stored is not asked for again: at most one chunk twice.
    assert len(asked) <= len(texts) + 8
    np.testing.assert_allclose(found.numpy(), model.encode(texts, show_progress_bar=False), atol=1e-6)


def test_what_is_missing_is_named(connect: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from reasonembed_mteb.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "openai", None)
    with serving(Served(model)) as server, pytest.raises(MissingExtraError, match=r"reasonembed-mteb\[api\]"):
        connect(server)
