"""Fetching what a run needs, for machines that are offline later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonembed_mteb.errors import ReasonEmbedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mteb.abstasks import AbsTask


def download(
    tasks: Sequence[AbsTask], models: Sequence[str], say: Callable[[str], None], folder: str | None = None
) -> None:
    """Fetch tasks' data and models' weights into the hub's local cache.

    Args:
        tasks: MTEB tasks, ours or MTEB's.
        models: Hub names.
        say: Takes one line at a time about what happens.
        folder: The hub cache, where it is not the usual one.

    Raises:
        ReasonEmbedError: If something cannot be fetched.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    for task in tasks:
        task.load_data()
        task.unload_data()
        say(f"{task.metadata.name}: data is there")
    for model in models:
        try:
            path = huggingface_hub.snapshot_download(model, cache_dir=folder)
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            msg = f"cannot fetch {model}: {str(error).splitlines()[0]}; check the name and go online"
            raise ReasonEmbedError(msg) from error
        say(f"{model}: {path}")
