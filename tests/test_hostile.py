"""Documents, ids and names that try to act: on every command that prints or writes, and 200 at random."""

from __future__ import annotations

import json
import random
import shlex
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from remixer_script import answer, write_config
from reporting_data import write_run
from stub_server import StubServer
from training_data import make_rows, write_rows

from reasonembed_mteb.store.vectors import LAYOUT, MANIFEST, MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

MINI, PONY = "ReasonMiniBiology", "ReasonMiniPony"
RANDOM = "mteb/baseline-random-encoder"
PARTS = [
    "\x1b]0;owned\x07",
    "\x1b[31m",
    "\x1b[2J",
    "\x9b31m",
    "\r",
    "\b\b\b",
    "\n",
    "\t",
    "\u202e",
    "\u2066",
    "\u200e",
    "\u200b",
    "\u2028",
    "\ufeff",
    "\ud800",
    "[red]",
    "[link=file:///x]",
    "</script><script>alert(1)</script>",
    '" onload="x',
    "| a | b |",
    "`x`",
    "![x](http://x)",
    "\\input{/etc/passwd}",
    "^^5c",
    "$\\frac$",
    "%",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "../../",
    "/etc/x",
    "..\\",
    "CON",
    "{task.__class__}",
    "{instruction}",
    "%s%n",
    "'; rm -rf x",
    "é日本🙂",
    "word",
]


def draw(source: random.Random, count: int = 4) -> str:
    """Draw a text of some parts."""
    return " ".join(source.choices(PARTS, k=source.randint(1, count))) + str(source.randint(0, 99))


def file_part(text: str) -> str:
    """Return what a file system takes of a text as one name."""
    name = text.replace("/", "\u2215").replace("\0", "").encode("utf-8", "ignore").decode()
    return name[:60] if name.strip(". ") else "x"


def utf8(text: str) -> str:
    """Return a text without halves of surrogate pairs, which no Parquet file holds."""
    return text.encode("utf-8", "ignore").decode()


class World:
    """One hostile data set: results, a BEIR folder, a run, a store, a corpus, training rows."""

    def __init__(self, root: Path, source: random.Random, base_url: str, decoder: Path) -> None:
        self.root, self.draw = root, lambda: draw(source)
        self.word = self.draw()
        self.model = utf8(f"x/{self.word}")
        self.query, self.document = (utf8(self.draw()) for _ in range(2))
        root.mkdir(parents=True)
        self._write_results()
        self._write_beir()
        self._write_store()
        self._write_corpus(base_url)
        self._write_training(decoder)
        self._write_pipeline(base_url)

    def _write_results(self) -> None:
        self.results = self.root / file_part(self.word)
        found = {self.query: [(self.document, 0.9), ("d2", 0.5)]}
        for model in ("x/plain", "y/hostile"):
            write_run(self.results, model, MINI, {self.query: 0.5, "1": 0.25}, found=found)
            file = write_run(self.results, model, PONY, {"1": 0.125})
            if model == "y/hostile":
                about = {"name": self.model, "revision": self.word, "embed_dim": self.word}
                (file.parent / "model_meta.json").write_text(json.dumps(about))
        content = json.loads(file.read_text()) | {"task_name": self.word, "date": self.word}
        (file.parent / "Other.json").write_text(json.dumps(content))
        (file.parent / f"{file_part(self.word)}.json").write_text("{")
        (file.parent / "run_settings.jsonl").write_text(json.dumps({"task": self.word}) + "\n")

    def _write_beir(self) -> None:
        self.beir = self.root / f"beir {file_part(self.word)}"
        documents = [{"_id": name, "title": self.word, "text": self.word} for name in ("d1", self.document)]
        write_rows(self.beir / "corpus.jsonl", documents)
        write_rows(self.beir / "queries.jsonl", [{"_id": self.query, "text": self.word}])
        (self.beir / "qrels").mkdir()
        labels = f"query-id\tcorpus-id\tscore\n{self.query}\td1\t1\n"
        (self.beir / "qrels" / "test.tsv").write_text(labels, encoding="utf-8")
        self.run = self.root / f"{file_part(self.word)}.json"
        self.run.write_text(json.dumps({self.query: {"d1": 1.0, self.document: 0.5}}))

    def _write_store(self) -> None:
        self.store = self.root / "store" / file_part(self.word)
        self.store.mkdir(parents=True)
        (self.root / "outside").write_text("stays")
        about = {"name": self.model, "revision": self.word, "layout": LAYOUT}
        (self.store / MODEL).write_text(json.dumps(about))
        shard = {"file": "../../outside", "rows": 1, "bytes": 5, "xxh3": "x", "dtype": self.word}
        manifest = {"layout": LAYOUT, "dimension": 2, "shards": [shard]}
        (self.store / MANIFEST).write_text(json.dumps(manifest))

    def _write_corpus(self, base_url: str) -> None:
        self.synthesis = self.root / "synthesis"
        rows = [
            {"id": f"{number} {self.word}", "text": f"{self.word} {' '.join(['water'] * 40)} {number}"}
            for number in range(4)
        ]
        write_rows(self.synthesis / "corpus.jsonl", rows)
        query = {"id": self.word, "query": self.word, "gold_ids": [rows[0]["id"]], "excluded_ids": []}
        write_rows(self.synthesis / "queries.jsonl", [query])
        self.config = write_config(self.synthesis, base_url)

    def _write_training(self, decoder: Path) -> None:
        rows = [row | {"query": f"{self.word} {row['query']}", "pos": [self.word]} for row in make_rows(8)]
        self.rows = write_rows(self.root / "rows" / f"{file_part(self.word)}.jsonl", rows).parent
        self.recipe = self.root / "recipe.toml"
        self.recipe.write_text(
            f"name = {json.dumps(utf8(self.word))}\n[model]\nname = {json.dumps(str(decoder))}\n"
            '[loss]\nstart_step = 1\n[batch]\ndevices = 1\nqueries = 4\n[training]\nprecision = "fp32"\n',
            encoding="utf-8",
        )
        self.metrics = self.root / "metrics.csv"
        self.metrics.write_text(f"step,loss,{shlex.quote(file_part(self.word))}\n1,0.5,1\n", encoding="utf-8")

    def _write_pipeline(self, base_url: str) -> None:
        word = json.dumps(utf8(self.word).replace("\x7f", ""))
        self.pipeline = self.root / "pipeline.toml"
        endpoint = f'[endpoints.default]\nbase_url = "{base_url}"\nmodel = {word}\n'
        self.pipeline.write_text(
            f'name = "hostile"\nabout = {word}\n{endpoint}[[stage]]\nkind = "rewrite"\nmissing = "original"\n'
            f'[[stage]]\nkind = "retrieve"\n[[stage.retriever]]\nname = {word}\nmodel = "bm25"\n'
            '[[stage]]\nkind = "rerank"\nby = "listwise"\n',
            encoding="utf-8",
        )
        self.misspelt = self.root / "misspelt.toml"
        self.misspelt.write_text(f'name = "x"\n[[stage]]\nkind = {word}\n', encoding="utf-8")


def _report(format: str) -> Callable[[World], list[Any]]:
    printed = format in ("table", "markdown", "latex", "csv", "json")

    def arguments(world: World) -> list[Any]:
        output = [] if printed else ["--output", world.root / "out" / f"report-{format}", "--overwrite"]
        return ["report", world.results, "--format", format, "--published", "--cost", *output]

    return arguments


BEIR = ["run", "-m", RANDOM, "--no-store", "--overwrite", "--beir"]
COMMANDS: dict[str, Callable[[World], list[Any]]] = {
    "run a BEIR folder": lambda w: [
        *BEIR,
        w.beir,
        "--instruction",
        w.word,
        "--output-folder",
        "out",
        "--run-file",
        f"out/{file_part(w.word).replace('{', '').replace('}', '')}-{{model}}-{{task}}.trec",
    ],
    "run --dry-run": lambda w: [*BEIR, w.beir, "--dry-run", "--output-folder", "out"],
    "run of an unknown model": lambda w: ["run", "-m", w.word, "-t", MINI, "--output-folder", "out"],
    "run of an unknown task": lambda w: ["run", "-m", RANDOM, "-t", w.word, "--output-folder", "out"],
    "run into a folder": lambda w: [
        *BEIR,
        w.beir,
        "--output-folder",
        "out/" + file_part(w.word),
        "--prediction-folder",
        "out/p",
    ],
    "score": lambda w: ["score", w.run, "--qrels", w.beir / "qrels" / "test.tsv"],
    "score as JSON": lambda w: ["score", w.run, "--qrels", w.beir / "qrels" / "test.tsv", "--format", "json"],
    "score of an unknown task": lambda w: ["score", w.run, "--task", w.word],
    **{
        f"report {name}": _report(name)
        for name in ("table", "markdown", "latex", "csv", "json", "html", "png", "svg")
    },
    "inspect a query": lambda w: ["inspect", w.results, "--task", MINI, "--query", w.query],
    "inspect as JSON": lambda w: ["inspect", w.results, "--task", MINI, "--query", w.query, "--json"],
    "inspect an unknown query": lambda w: ["inspect", w.results, "--task", w.word, "--query", w.word],
    "inspect the worst": lambda w: ["inspect", w.results, "--worst", "3", "-m", w.model],
    "inspect two": lambda w: ["inspect", w.results, "--differ", w.model, "x/plain"],
    "pipeline": lambda w: ["pipeline", w.pipeline, "--beir", w.beir, "--output-folder", "out", "--overwrite"],
    "pipeline --dry-run": lambda w: ["pipeline", w.pipeline, "--beir", w.beir, "--dry-run"],
    "pipeline of an unknown stage": lambda w: ["pipeline", w.misspelt, "--beir", w.beir],
    "check-submission": lambda w: ["check-submission", w.results],
    "submit --check": lambda w: ["submit", "--check", w.results],
    "export-beir": lambda w: ["export-beir", MINI, "out/" + file_part(w.word)],
    "export-beir of an unknown task": lambda w: ["export-beir", w.word, "out/x"],
    "export-modelmeta": lambda w: ["export-modelmeta", "--output", "out/" + file_part(w.word)],
    "export-modelmeta of an unknown model": lambda w: ["export-modelmeta", w.word, "--revision", w.word],
    "store info": lambda w: ["store", "info", w.store.parent],
    "store verify": lambda w: ["store", "verify", w.store.parent],
    "store prune": lambda w: ["store", "prune", w.store.parent],
    "store prune of an unknown model": lambda w: ["store", "prune", w.store.parent, "-m", w.word],
    "synthesize --dry-run": lambda w: ["synthesize", w.config, "--dry-run"],
    "synthesize": lambda w: ["synthesize", w.config],
    "synthesize an unknown step": lambda w: ["synthesize", w.config, "--step", w.word],
    "samples": lambda w: ["samples", w.rows, "--output", "out/page.html"],
    "samples of nothing": lambda w: ["samples", w.word, "--output", "out/page.html"],
    "export-judgements": lambda w: ["export-judgements", w.config, "--output", "out/chats.jsonl"],
    "train --dry-run": lambda w: [
        "train",
        w.recipe,
        "--data",
        w.rows,
        "--dry-run",
        "--data-cache",
        w.root / "out" / "cache",
    ],
    "train with an unknown key": lambda w: ["train", w.recipe, "--data", w.rows, "--set", w.word],
    "plot-training": lambda w: ["plot-training", w.metrics, "--output", "out/plot.png"],
    "poison with an unknown attack": lambda w: ["poison", "-m", "bm25", "-t", "SciFact", "--attack", w.word],
    "doctor": lambda w: ["doctor"],
    "tasks": lambda w: ["tasks", "-b", w.word],
    "models": lambda w: ["models"],
    "an unknown command": lambda w: [w.word],
    "an unknown option": lambda w: ["report", w.results, f"--{w.word}"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    """Return a language model that answers with what is in its prompts."""
    with StubServer(lambda seen: f"{answer(seen)}") as running:
        yield running


def acts(text: str) -> list[str]:
    """Return the characters of an output that would act on a terminal."""
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return sorted(
        {repr(char) for char in text if char not in "\n\t" and unicodedata.category(char) in unseen}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check(name: str, world: World, top: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Run a command, and assert that nothing acted."""
    (world.root / "out").mkdir(exist_ok=True)
    monkeypatch.chdir(world.root)
    # A shell can hand over neither.
    arguments = [utf8(str(one)).replace("\0", "") for one in COMMANDS[name](world)]
    before = files_of(top)
    status, out, err = command(*arguments)
    told = f"{name}: {arguments!r}\n{out}\n{err}"
    assert status in (0, 1, 2), told
    assert not acts(out + err), told
    assert "Traceback" not in out + err, told
    own = [str(world.root / part) + "/" for part in ("out", "store", "synthesis/out")]
    after = files_of(top)
    touched = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not [path for path in touched if not path.startswith(tuple(own))], told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_what_would_act(
    name: str,
    tmp_path: Path,
    qwen3_dir: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    source = random.Random(0)
    world = World(tmp_path / "a" / "b" / "work", source, server.base_url, qwen3_dir)
    check(name, world, tmp_path, monkeypatch, command)


@pytest.mark.parametrize("seed", range(1, 201))
def test_a_hostile_input_at_random(
    seed: int,
    tmp_path: Path,
    qwen3_dir: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    source = random.Random(seed)
    world = World(tmp_path / "a" / "b" / "work", source, server.base_url, qwen3_dir)
    check(source.choice(list(COMMANDS)), world, tmp_path, monkeypatch, command)
