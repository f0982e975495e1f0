"""``python -m reasonembed_mteb`` is the command ``reasonembed``."""

from __future__ import annotations

from reasonembed_mteb.cli import main

if __name__ == "__main__":
    main()
