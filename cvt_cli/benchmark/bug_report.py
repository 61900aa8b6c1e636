"""Facts about this machine for a bug report: versions, devices, cache, extras."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cvt_cli.benchmark.machine import describe_machine
from cvt_cli.checkpoint.catalog import DEFAULT_MODEL, bundled_names
from cvt_cli.inference.devices import pick_device, pick_dtype
from cvt_cli.output.report_tables import Column, Report, Section, si_unit
from cvt_cli.system.extras import extras, install_hint

PACKAGES = ("typer", "rich", "pillow", "numpy", "huggingface_hub", "safetensors", "fsspec", "tqdm")
# Environment variables that decide where models come from and how fast they run. Of those that may
# hold a secret, a token or an address with a password, only whether they are set is shown.
SHOWN = (
    "HF_HUB_OFFLINE", "CVT_MODEL", "CVT_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "LANG",
)  # fmt: skip
HIDDEN = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
_NAME = re.compile(r"[\w.-]+")


def diagnose() -> dict[str, Any]:
    """Collect the facts about this machine.

    Returns:
        A JSON value with `versions`, `machine`, `fast`, `cache`, `extras` and `environment`.
    """
    device = pick_device("auto")
    machine = describe_machine(device)
    versions = {**machine.versions, **{name: _version(name) for name in PACKAGES}}
    return {
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "cpu": machine.cpu,
            "cores": machine.cores,
            "cpu_flags": list(machine.flags),
            "memory_bytes": machine.memory_bytes,
            "threads": machine.threads,
        },
        "devices": _devices(machine.driver),
        "fast": {
            "device": str(device),
            "dtype": str(pick_dtype("auto", device)).removeprefix("torch."),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
        },
        "cache": _cache(),
        "models": {"default": DEFAULT_MODEL, "bundled": list(bundled_names())},
        "extras": {name: _extra(name, needed) for name, needed in extras().items()},
        "environment": {
            **{name: os.environ[name] for name in SHOWN if name in os.environ},
            **{name: "set" for name in HIDDEN if name in os.environ},
        },
    }


def doctor_report(facts: Mapping[str, Any]) -> Report:
    """Build the report of the facts, as one block."""
    machine, fast, cache = facts["machine"], facts["fast"], facts["cache"]
    memory = machine["memory_bytes"]
    rows: list[tuple[str, str]] = [
        ("versions", ", ".join(f"{name} {value}" for name, value in facts["versions"].items())),
        ("system", machine["system"]),
        (
            "machine",
            f"{machine['cpu']}, cores: {machine['cores']}"
            + (f", {si_unit(memory, 'B')}" if memory else "")
            + (f", {' '.join(machine['cpu_flags'])}" if machine["cpu_flags"] else ""),
        ),
        ("devices", "; ".join(facts["devices"])),
        (
            "used",
            f"{fast['device']} in {fast['dtype']}; kernels for {fast['cpu_capability']}, "
            f"oneDNN: {'yes' if fast['onednn'] else 'no'}, threads: {machine['threads']}",
        ),
        ("cache", _cache_in_words(cache)),
    ]
    rows += [
        (f"extra {name}", "installed" if extra["installed"] else f"missing: {extra['install']}")
        for name, extra in facts["extras"].items()
    ]
    set_ = ", ".join(f"{name}={value}" for name, value in facts["environment"].items())
    rows.append(("environment", set_ or "nothing set that matters"))
    columns = (Column(), Column(wraps=True))
    records = [{"what": name, "value": value} for name, value in rows]
    return Report(facts, records, lambda width: [Section("", columns, rows)])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices(driver: str) -> list[str]:
    cuda = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}"
        for index in range(torch.cuda.device_count())
    ]
    if cuda and driver:
        cuda.append(driver)
    mps = ["mps (by name only)"] if torch.backends.mps.is_available() else []
    return ["cpu", *cuda, *mps]


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    found: dict[str, Any] = {"folder": str(folder), "exists": folder.is_dir()}
    if found["exists"]:
        models = sorted(each for each in folder.glob("models--*") if each.is_dir())
        files = (file for each in models for file in (each / "blobs").glob("*"))
        found["models"] = len(models)
        found["bytes"] = sum(file.stat().st_size for file in files if file.is_file())
        found["writable"] = os.access(folder, os.W_OK)
    return found


def _cache_in_words(cache: Mapping[str, Any]) -> str:
    if not cache["exists"]:
        return f"{cache['folder']}: not there yet, the first download makes it"
    state = "" if cache["writable"] else ", read-only"
    return f"{cache['folder']}: models: {cache['models']}, {si_unit(cache['bytes'], 'B')}{state}"


def _extra(name: str, needed: Sequence[str]) -> dict[str, Any]:
    names = [found[0] for line in needed if (found := _NAME.match(line))]
    missing = [each for each in names if _version(each) is None]
    return {
        "installed": not missing,
        "missing": missing,
        "install": install_hint(name) if missing else None,
    }
