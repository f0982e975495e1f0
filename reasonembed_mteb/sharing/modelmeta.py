"""What a pull request to mteb needs for the published checkpoints."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError, unknown_name
from reasonembed_mteb.models.checkpoints import CHECKPOINTS, Checkpoint
from reasonembed_mteb.models.zoo import CITATION
from reasonembed_mteb.prompts import QUERY_TEMPLATE
from reasonembed_mteb.retrieval.rows import load_rows, task_instructions, training_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODULE, PROMPTS, REQUEST = "reason_embed_models.py", "prompts.json", "PULL_REQUEST.md"
# The same weights under another name (model card of the basic 8B checkpoint).
TWIN = ("hanhainebula/reason-embed-basic-qwen3-8b-0928", "BAAI/bge-reasoner-embed-qwen3-8b-0923")
_COMMIT = re.compile(r"[0-9a-f]{40}")

_HEAD = '''\
from __future__ import annotations

from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.model_meta import ModelMeta
from mteb.types import OutputDType

REASON_EMBED_CITATION = """{citation}"""

# The first stage was trained on MS MARCO; the passages of the second are documents of BRIGHT's
# corpora, for which queries were written: no BRIGHT task is zero-shot.
REASON_EMBED_TRAINING_DATA = {{
{training}
}}

# The published evaluation's instructions. Queries are "Instruct: ...", a line break and "Query: ...",
# with one space before the query; documents are bare.
_prompts_dict = {{
{prompts}
}}

_loader_kwargs = dict(
    instruction_template={template},
    apply_instruction_to_passages=False,
    # BRIGHT's length on both sides. R2MED was published at 512 tokens; a loader has one length.
    max_seq_length=8192,
    prompts_dict=_prompts_dict,
    model_kwargs={{"dtype": "bfloat16"}},
)
'''

_ENTRY = """
{variable} = ModelMeta(
    loader=InstructSentenceTransformerModel,
    loader_kwargs=_loader_kwargs,
    name={name},
    model_type=["dense"],
    languages=["eng-Latn"],
    open_weights=True,
    revision={revision},
    release_date="2025-10-11",
    n_parameters=None,
    n_embedding_parameters=None,
    memory_usage_mb=None,
    embed_dim={embed_dim},
    license="cc-by-nc-4.0",
    max_tokens=8192,
    reference={reference},
    similarity_fn_name="cosine",
    framework=["Sentence Transformers", "PyTorch", "safetensors"],
    use_instructions=True,
    public_training_code="https://github.com/VectorSpaceLab/agentic-search",
    public_training_data="https://huggingface.co/datasets/hanhainebula/reason-embed-data",
    training_datasets=REASON_EMBED_TRAINING_DATA,
    adapted_from={backbone},
    citation=REASON_EMBED_CITATION,
    output_dtypes=OutputDType.BF16,
)
"""

_REQUEST = """\
# Add ReasonEmbed ({count})

Adds `mteb/models/model_implementations/{module}`. Related: embeddings-benchmark/mteb#3772{twin}.
Paper: https://arxiv.org/abs/2510.08252.

| model | published nDCG@10 on BRIGHT | on R2MED |
|---|---|---|
{scores}

To fill in from the hub before it is opened:

{unknown}- `n_parameters`, `n_embedding_parameters`: `ModelMeta.from_hub(name)` counts them
- `memory_usage_mb`: `mteb.get_model_meta(name).calculate_memory_usage_mb()`
- that each repository has a `modules.json` with last-token pooling and normalisation; without one
  sentence-transformers would pool otherwise

To know when reading the scores:

- the training passages are BRIGHT documents, so all BRIGHT tasks are declared as training data
- the published R2MED scores were measured at 512 tokens, the entry has BRIGHT's 8192
- excluded documents leave before the cut, as in the v1.1 tasks

Checklist of mteb:

- [ ] I have filled out the ModelMeta object to the extent possible
- [ ] I have ensured that my model can be loaded using
  - [ ] `mteb.get_model(model_name, revision)` and
  - [ ] `mteb.get_model_meta(model_name, revision)`
- [ ] I have tested the implementation works on a representative set of tasks (`mteb mock-run -m {first}`).
- [ ] The model is public, i.e., is available either as an API or the weights are publicly available to
      download
- [ ] I reproduced results from the original paper (if applicable) on at least one benchmark, and I am
      including the results in the PR description.
"""


# Data whose tasks get the paper's instructions (arXiv 2510.08252), also where mteb has others.
_PAPERS = ("BRIGHT", "BRIGHT-Pro", "R2MED")


def own_task_names() -> frozenset[str]:
    """Return the names of our tasks, which mteb alone does not know."""
    return frozenset(row.name for row in load_rows() if not row.is_mtebs)


def mteb_training_tasks() -> set[str]:
    """Return mteb's own tasks that the checkpoints are not zero-shot on."""
    return training_tasks() - own_task_names()


def mteb_prompts() -> dict[str, str]:
    """Return the instruction of every task of mteb's that the protocol has another one for than mteb."""
    ours = own_task_names()
    # Of a task that is mteb's own row, mteb's prompt is the instruction, unless the row says otherwise.
    same = {row.name for row in load_rows() if row.is_mtebs and row.family not in _PAPERS}
    named = sorted(task_instructions().items())
    return {name: text for name, text in named if name not in ours | same}


def export_modelmeta(
    names: Sequence[str] = (), *, revisions: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what a pull request to mteb needs for the published checkpoints.

    Args:
        names: Hub names; none means all six.
        revisions: Commits by hub name. mteb wants one for each; this package knows none.

    Returns:
        File contents by file name: the module for ``mteb/models/model_implementations``, which imports mteb
        alone; its prompts as JSON; and a text for the request.

    Raises:
        UnknownNameError: If a name is not one of the six; the nearest is named.
        ReasonEmbedError: If a revision is no commit, or not of an exported model.
    """
    known = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}
    for name in names:
        if name not in known:
            raise unknown_name("model", name, known)
    chosen = [known[name] for name in dict.fromkeys(names or known)]
    commits = dict(revisions or {})
    _check_revisions(commits, [checkpoint.name for checkpoint in chosen])
    return {
        MODULE: _module(chosen, commits),
        PROMPTS: json.dumps(mteb_prompts(), indent=2) + "\n",
        REQUEST: _request(chosen, commits),
    }


def _check_revisions(commits: Mapping[str, str], names: Sequence[str]) -> None:
    for name, commit in commits.items():
        if name not in names:
            raise unknown_name("exported model", name, names)
        if not _COMMIT.fullmatch(commit):
            msg = f"the revision {commit!r} of {name} is no commit: give the 40 hex digits that the hub shows"
            raise ReasonEmbedError(msg)


def _quoted(text: str) -> str:
    """Return a string literal as Python's formatters write it."""
    return json.dumps(text, ensure_ascii=False)


def _module(chosen: Sequence[Checkpoint], commits: Mapping[str, str]) -> str:
    head = _HEAD.format(
        citation=CITATION,
        training="\n".join(f"    {_quoted(name)}," for name in sorted(mteb_training_tasks())),
        prompts="\n".join(f"    {_quoted(name)}: {_quoted(text)}," for name, text in mteb_prompts().items()),
        template=_quoted(QUERY_TEMPLATE),
    )
    return head + "".join(_entry(checkpoint, commits.get(checkpoint.name)) for checkpoint in chosen)


def _entry(checkpoint: Checkpoint, commit: str | None) -> str:
    return _ENTRY.format(
        variable=re.sub(r"\W+", "_", checkpoint.name.split("/")[1]).upper(),
        name=_quoted(checkpoint.name),
        revision=_quoted(commit) if commit else "None",
        embed_dim=checkpoint.embed_dim,
        reference=_quoted(f"https://huggingface.co/{checkpoint.name}"),
        backbone=_quoted(checkpoint.backbone),
    )


def _request(chosen: Sequence[Checkpoint], commits: Mapping[str, str]) -> str:
    missing = [checkpoint.name for checkpoint in chosen if checkpoint.name not in commits]
    unknown = f"- `revision`, which mteb requires, of {', '.join(missing)}\n" if missing else ""
    named = [checkpoint.name for checkpoint in chosen]
    return _REQUEST.format(
        count=f"{len(chosen)} checkpoint{'s' if len(chosen) > 1 else ''}",
        module=MODULE,
        twin=f" ({TWIN[1]} has the weights of {TWIN[0]})" if TWIN[0] in named else "",
        scores="\n".join(f"| {c.name} | {c.bright:.1f} | {c.r2med:.2f} |" for c in chosen),
        unknown=unknown,
        first=named[0],
    )
