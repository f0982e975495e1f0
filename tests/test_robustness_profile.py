"""A robustness profile: what is encoded, what is reused, what is written, and what stops it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import numpy as np
import pytest
from evaluation_data import BIOLOGY, ECONOMICS, TEMPLATE
from wordnet_data import dictionary

from reasonembed_mteb.errors import DataError, ReasonEmbedError
from reasonembed_mteb.evaluation.profiles import read_profile, read_profiles
from reasonembed_mteb.evaluation.resolving import resolve_model
from reasonembed_mteb.evaluation.runner import RunOptions
from reasonembed_mteb.models.reason_embed import ReasonEmbed
from reasonembed_mteb.robustness.profile import PROFILE, ProfileSettings, robustness_profile
from reasonembed_mteb.robustness.tasks import query_texts
from reasonembed_mteb.robustness.variations import SEEDS, VERSION, Variation
from reasonembed_mteb.robustness.wordnet import WordNet

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.usefixtures("registered", "data")]
SOURCE = WordNet(dictionary(), Path("tiny"))
SETTINGS = ProfileSettings(synonyms=SOURCE)
SMALL = ProfileSettings(seeds=(5,), synonyms=SOURCE)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every text that any ReasonEmbed encodes."""
    texts: list[str] = []
    encode = ReasonEmbed.encode

    def collect(self: ReasonEmbed, inputs: Any, **kwargs: Any) -> Any:
        prompt = kwargs.get("prompt") or ""
        texts.extend(prompt + text for text in ([inputs] if isinstance(inputs, str) else inputs))
        return encode(self, inputs, **kwargs)

    monkeypatch.setattr(ReasonEmbed, "encode", collect)
    return texts


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(tmp_path / "out", device="cpu", progress=False)


def queries(settings: ProfileSettings) -> Iterator[str]:
    """Yield the clean queries and all of a profile's varied ones."""
    task: Any = mteb.get_task(BIOLOGY)
    task.load_data()
    clean = list(query_texts(task))
    yield from clean
    for one in settings.variations():
        yield from (one.vary(text).text for text in clean)


def test_the_profile_has_seventeen_runs() -> None:
    made = SETTINGS.variations()
    assert len(made) == 17
    assert [one.kind for one in made] == [*(k for k in PROFILE[:3] for _ in SEEDS), *PROFILE[3:]]
    assert [one.seed for one in made] == [*SEEDS, *SEEDS, *SEEDS, None, None]
    assert {one.share for one in made} == {0.1}
    with pytest.raises(ReasonEmbedError, match="needs at least one seed"):
        ProfileSettings(seeds=(), synonyms=SOURCE).variations()


@pytest.mark.parametrize(
    ("settings", "runs"), [(SMALL, 5), pytest.param(SETTINGS, 17, marks=pytest.mark.slow)]
)
def test_the_corpus_is_encoded_once_and_each_distinct_query_once(
    bert: Path, options: RunOptions, encoded: list[str], settings: ProfileSettings, runs: int
) -> None:
    meta = resolve_model(str(bert), template=TEMPLATE)
    report = robustness_profile([meta], [mteb.get_task(BIOLOGY)], options, settings)
    assert report.failures == []
    prefix = TEMPLATE.replace("{instruction}", "")[:9]
    asked = [text for text in encoded if text.startswith(prefix)]
    # The corpus repeats after 19 documents: a text is encoded once however often it comes.
    assert len(encoded) == len(set(encoded))
    assert len(encoded) - len(asked) == 19
    assert len(asked) == len(set(queries(settings))) > 6
    (profile,) = report.profiles
    assert len(profile.runs) == runs
    encoded.clear()
    again = robustness_profile([meta], [mteb.get_task(BIOLOGY)], options, settings)
    assert encoded == []
    assert again.profiles == report.profiles
    stronger = ProfileSettings(kinds=("misspelling",), share=0.5, synonyms=SOURCE)
    robustness_profile([meta], [mteb.get_task(BIOLOGY)], options, stronger)
    assert all(text.startswith(prefix) for text in encoded)


def test_what_is_written_is_what_was_scored(options: RunOptions) -> None:
    settings = replace(SMALL, kinds=("synonyms", "reordering"))
    report = robustness_profile(
        [resolve_model("bm25")], [mteb.get_task(BIOLOGY), mteb.get_task(ECONOMICS)], options, settings
    )
    assert [one.task for one in report.profiles] == [BIOLOGY, ECONOMICS]
    assert read_profiles([options.output]) == (report.profiles, [])
    first = report.profiles[0]
    assert (first.model, first.share, first.official) == ("mteb/baseline-bm25s", 0.1, False)
    assert first.wordnet == SOURCE.digest
    assert len(first.queries) == len(first.clean) == 6
    for run, one in zip(first.runs, settings.variations(), strict=True):
        assert (run.variation, run.seed) == (one.kind, one.seed)
        result = next((options.output / "robustness").rglob(f"results/**/{run.task}.json"))
        stored = mteb.TaskResult.from_disk(result).scores["standard"][0]["ndcg_at_10"]
        assert np.mean(run.scores) == pytest.approx(stored, abs=1e-5)
        assert run.counts.queries == 6
    # Words in another order are the same to BM25.
    assert first.runs[1].scores == first.clean


def test_a_smoke_run_is_kept_apart_and_says_so(options: RunOptions) -> None:
    report = robustness_profile(
        [resolve_model("bm25")],
        [mteb.get_task(BIOLOGY)],
        replace(options, limit=2),
        replace(SMALL, kinds=("keywords",)),
    )
    assert len(report.profiles[0].queries) == 2
    assert report.profiles[0].runs[0].counts.queries == 2
    assert "not a result" in report.profiles[0].settings
    assert read_profiles([options.output])[0] == []
    assert len(read_profiles([options.output / "limit-2"])[0]) == 1


def test_a_model_that_fails_has_no_profile_and_does_not_stop_others(options: RunOptions, bert: Path) -> None:
    broken: Any = resolve_model(str(bert)).model_copy(update={"name": "local/broken"})
    (Path(bert) / "broken").mkdir(exist_ok=True)
    broken = broken.model_copy(update={"loader_kwargs": {"path": str(bert / "broken"), "kind": "dense"}})
    one = ProfileSettings(kinds=("naturalising",))
    report = robustness_profile([broken, resolve_model("bm25")], [mteb.get_task(BIOLOGY)], options, one)
    assert [one.model for one in report.profiles] == ["mteb/baseline-bm25s"]
    assert len(report.failures) == 1
    assert report.failures[0].startswith(f"local/broken on {BIOLOGY}: {BIOLOGY} failed: ")


def test_paraphrases_and_bad_tasks(options: RunOptions) -> None:
    given = {"cell leaf water": "market price"}
    one = ProfileSettings(kinds=("paraphrase",), paraphrases=given)
    report = robustness_profile([resolve_model("bm25")], [mteb.get_task(BIOLOGY)], options, one)
    (run,) = report.profiles[0].runs
    assert run.counts.kept == {"no paraphrase": 5}
    assert run.counts.changed_queries == 1
    assert run.scores[0] < report.profiles[0].clean[0]
    with pytest.raises(DataError, match="STS12 is no retrieval task"):
        robustness_profile([resolve_model("bm25")], [mteb.get_task("STS12")], options, one)


def test_a_profile_may_be_made_in_parts(options: RunOptions) -> None:
    def made(**changes: Any) -> list[str]:
        settings = ProfileSettings(**{"synonyms": SOURCE} | changes)
        robustness_profile([resolve_model("bm25")], [mteb.get_task(BIOLOGY)], options, settings)
        (held, *_), problems = read_profiles([options.output])
        assert problems == []
        assert held.wordnet == (SOURCE.digest if "synonyms" in {r.variation for r in held.runs} else None)
        return [f"{run.variation} {run.seed}" for run in held.runs]

    assert made(kinds=("synonyms",), seeds=(5,)) == ["synonyms 5"]
    assert made(kinds=("keywords",)) == ["synonyms 5", "keywords None"]
    # A kind that is run again replaces what it had.
    assert made(kinds=("synonyms",), seeds=(27,)) == ["keywords None", "synonyms 27"]
    (file,) = (options.output / "chapters" / "robustness").glob("*.json")
    # What other data or variations gave does not stay.
    file.write_text(
        file.read_text(encoding="utf-8").replace(f'"version": {VERSION}', '"version": 0'), encoding="utf-8"
    )
    assert made(kinds=("naturalising",)) == ["naturalising None"]


def test_a_damaged_record_is_left_out_and_named(options: RunOptions) -> None:
    one = ProfileSettings(kinds=("naturalising",))
    report = robustness_profile([resolve_model("bm25")], [mteb.get_task(BIOLOGY)], options, one)
    (file,) = report.files
    text = file.read_text(encoding="utf-8")
    assert read_profile(file) == report.profiles[0]
    for damage in (
        text[:-40],
        text.replace('"format": 1', '"format": 0'),
        text.replace('"words"', '"wrods"'),
        text.replace('"share": 0.1', '"share": "x"'),
        text.replace('"seed": null,', '"seed": null, "more": 1,', 1).replace(
            '"queries": [', '"queries": [1,'
        ),
    ):
        file.write_text(damage, encoding="utf-8")
        found, problems = read_profiles([options.output])
        assert found == []
        assert "is no record of robustness of this version" in problems[0]


def test_the_variations_of_a_profile_are_the_transforms_themselves() -> None:
    assert SETTINGS.variations()[0] == Variation("misspelling", 1999, synonyms=SOURCE)
