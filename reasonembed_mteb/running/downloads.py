"""Fetching what a run needs, for machines that are offline later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mteb.abstasks import AbsTask


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what the hub's client raises when it cannot reach the hub or finds nothing there."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Offline mode and missing entries are kinds of OSError; the other base belongs to the HTTP library,
    # which differs between versions of the client.
    return (OSError, HFValidationError, *HfHubHTTPError.__bases__)


def download(
    tasks: Sequence[AbsTask], models: Sequence[str], say: Callable[[str], None], folder: str | None = None
) -> None:
    """Fetch tasks' data and models' weights into the hub's local cache.

    Args:
        tasks: MTEB tasks, ours or MTEB's; each is loaded, and so checked, once.
        models: Hub names; a model of MTEB's registry comes at the commit that MTEB names.
        say: Takes one line at a time about what happens.
        folder: The hub cache for models, where it is not the usual one.

    Raises:
        ReasonEmbedError: If something cannot be fetched.
    """
    for task in tasks:
        task.load_data()
        task.unload_data()
        say(f"{task.metadata.name}: data is there")
    for model in models:
        say(f"{model}: {_fetch(model, folder)}")


def _fetch(model: str, folder: str | None) -> str:
    import huggingface_hub
    from mteb.models.model_implementations import MODEL_REGISTRY

    meta = MODEL_REGISTRY.get(model)
    revision = meta.revision if meta is not None else None
    try:
        return str(huggingface_hub.snapshot_download(model, revision=revision, cache_dir=folder))
    except hub_errors() as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        msg = f"cannot fetch {model}: {cause}; check the name (org/name on the hub) and go online"
        raise ReasonEmbedError(msg) from error
