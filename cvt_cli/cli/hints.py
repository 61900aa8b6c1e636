"""Hints for unknown commands and options: what to type instead."""

import difflib
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL

# Names known from other tools, and the ones used here.
SYNONYMS = {
    "--json": "--format json",
    "--jsonl": "--format jsonl",
    "--csv": "--format csv",
    "--parquet": "--format parquet",
    "--html": "-o report.html",
    "--force": "--overwrite",
    "--yes": "--overwrite",
    "--out": "--output",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--fp16": "--dtype float16",
    "--half": "--dtype float16",
    "--bf16": "--dtype bfloat16",
    "--topk": "--top-k",
    "--verbose": "--debug",
    "--checkpoint": "--model",
    "--weights": "--model",
    "--jobs": "--readers",
    "--num-workers": "--readers",
}
COMMAND_SYNONYMS = {
    "predict": "classify",
    "label": "classify",
    "run": "classify",
    "bench": "benchmark",
    "info": "inspect",
    "eval": "evaluate",
    "validate": "evaluate",
    "list": "models",
    "download": "models --download NAME",
    "fit": "train",
    "finetune": "train",
    "fine-tune": "train",
    "features": "embed",
    "keywords": "tag",
    "xmp": "tag",
    "env": "doctor",
    "check": "doctor",
    "checks": "doctor",
}
# Commands for which --model has a default.
_MODEL_COMMANDS = ("benchmark", "classify", "embed", "evaluate", "explain")
# Characters of a command that are still easy to read and to copy.
_READABLE = 200
# Options of `cvt` itself.
_OF_CVT = ("-q", "--quiet", "--debug")
# Commands that are named for an option that they have, at most.
_MOST_HOLDERS = 3
# Least ratio by difflib: --recursve is close to --recursive, --json is not to --revision.
CLOSE = 0.75


def for_command(name: str, arguments: Iterable[str], known: Iterable[str]) -> str:
    """Return what to type in place of an unknown command; empty if there is no good guess.

    Args:
        name: what was typed.
        arguments: all that was typed behind `cvt`.
        known: the commands.
    """
    if os.path.exists(name) or "/" in name or "." in name:
        return f"did you mean `cvt classify {' '.join(arguments)}`?"
    if name in COMMAND_SYNONYMS:
        return f"did you mean `cvt {COMMAND_SYNONYMS[name]}`?"
    close = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE)
    return f"did you mean `cvt {close[0]}`?" if close else ""


def for_option(name: str, context: Any) -> str:
    """Return what to type in place of an unknown option; empty if there is no good guess.

    Args:
        name: what was typed, without a value.
        context: click's, of the command that does not know it.
    """
    for word in sys.argv[1:]:
        if word.startswith(name) and os.path.lexists(word):  # as of a shell's `*.jpg`
            return f"for the file of that name, write ./{word} or put it after --"
    if context is None:
        return ""
    command = context.command
    here = _options(command, context)
    if hasattr(command, "list_commands"):
        holders = [
            each
            for each in command.list_commands(context)
            if name in _options(command.get_command(context, each), context)
        ]
        if holders:
            return f"it goes after the command: cvt {holders[0]} … {name} …"
    return _known_elsewhere(name, context, here) or _close(name, here)


def _known_elsewhere(name: str, context: Any, here: set[str]) -> str:
    command, group = context.command, context.parent
    if name in _OF_CVT and group is not None:  # `-q` has been looked for alone
        return f"it stands alone: cvt {name} {command.name} …"
    if name in ("--model", "-m") and any(
        str(each.name).startswith("model") for each in command.params
    ):
        return f"the model is an argument: cvt {command.name} MODEL …"
    if name in SYNONYMS:
        meant = SYNONYMS[name]
        return f"did you mean {meant}?" if not here or meant.split()[0] in here else ""
    if group is None or _close(name, here):
        return ""
    holders = [
        f"`cvt {each}`"
        for each in group.command.list_commands(group)
        if name.startswith("--") and name in _options(group.command.get_command(group, each), group)
    ]
    if len(holders) > _MOST_HOLDERS:
        return ""
    return f"{' and '.join(holders)} {'has' if len(holders) == 1 else 'have'} it" if holders else ""


def _close(name: str, here: set[str]) -> str:
    close = difflib.get_close_matches(name, here, n=1, cutoff=CLOSE)
    return f"did you mean {close[0]}?" if close else ""


def _options(command: Any, context: Any) -> set[str]:
    return {
        name
        for param in command.get_params(context)
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("-")
    }


def with_whole_command(hint: str, arguments: Sequence[str]) -> str:
    """Add to a hint the whole command with the bundled model, if no model was named and the command
    is short enough to read."""
    option = f"--model {BUNDLED_MODEL}"
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before, after = arguments[:end], arguments[end:]
    named = "CVT_MODEL" in os.environ or any(each.startswith(("-m", "--mo")) for each in before)
    has_option = any(each in _MODEL_COMMANDS for each in before)
    command = shlex.join(["cvt", *before, *option.split(), *after])
    if named or not has_option or len(command) > _READABLE:
        return hint
    return hint.replace(f"`{option}`", f"`{command}`")
