"""Resolving: a bundled name, a Hub id, a folder or a file becomes local files.

The Hub's cache, tokens, endpoint and offline switch are `huggingface_hub`'s own business: it reads
`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from cvt_cli.checkpoint.catalog import BUNDLED_FOLDER, BUNDLED_MODEL, bundled_names
from cvt_cli.checkpoint.checkpoint_files import (
    CONFIG,
    MODEL_CARD,
    WEIGHTS,
    ResolvedFiles,
    find_preprocessor,
    with_shards,
)
from cvt_cli.checkpoint.foreign import (
    checkpoint_below,
    foreign_file,
    foreign_files,
    weights_among,
)
from cvt_cli.checkpoint.hub import HubRepo, did_you_mean
from cvt_cli.errors import ModelError

WEIGHTS_SUFFIXES = (
    *(".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pth.tar", ".pt.tar"),
    *(".npz", ".pkl", ".pickle"),
)
YAML_SUFFIXES = (".yaml", ".yml")


def resolve(
    name: str,
    revision: str | None = None,
    refresh: bool = False,
    *,
    offline: bool = False,
    weights: bool = True,
    weights_key: str | None = None,
    verify: bool = False,
) -> ResolvedFiles:
    """Find a checkpoint, and fetch the files that are missing on this machine.

    Args:
        name: a bundled name, a folder, a file of weights, or a Hub id: `org/name`,
            `org/name@revision`.
        revision: branch, tag or commit hash on the Hub.
        refresh: ask the Hub for the newest commit even if one is in the cache.
        offline: make no request.
        weights: False fetches the JSON files only.
        weights_key: which network to take where a file holds several.
        verify: compare large files in the Hub's cache with the Hub's digest as well, as `refresh`
            does: all of them is read.

    Raises:
        ModelError: if it can't be found or fetched; says why and what to do.
    """
    files = _resolve(name, revision, refresh, offline=offline, weights=weights, verify=verify)
    return replace(files, weights_key=weights_key)


def _resolve(
    name: str,
    revision: str | None,
    refresh: bool,
    *,
    offline: bool,
    weights: bool,
    verify: bool,
) -> ResolvedFiles:
    if not name:
        raise ModelError("no model is named", hint="is a variable empty?")
    if name in bundled_names():
        return _from_folder(name, BUNDLED_FOLDER / name, weights)
    # os.path, because Path raises an error for a name that no path can have.
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _from_folder(name, Path(path), weights)
    if os.path.isfile(path):
        return _from_file(name, Path(path))
    if os.path.isabs(path) or name.startswith((".", "~")) or _is_weights(path):
        raise ModelError(f"{name}: no such file or folder")
    repo, at = _repo_and_revision(name)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ModelError(f"{name}: no such model", hint=_hint_for_unknown(name))
    if revision and at and revision != at:
        raise ModelError(f"{name} and --revision {revision} name two revisions")
    hub = HubRepo(repo, revision or at or None, refresh, offline=offline, verify=verify)
    return hub.files(weights)


# The address of a page on the Hub.
_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/?#]+/[^/?#]+)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>refs/[^/]+/[^/?#]+|[^/?#]+))?(?:[/?#].*)?"
)


def _repo_and_revision(name: str) -> tuple[str, str]:
    """Split `org/name@revision`, or the address of a page on the Hub; the revision may be empty."""
    page = _PAGE.fullmatch(name)
    if page:
        return page["repo"], page["revision"] or ""
    repo, _, at = name.partition("@")
    return repo.rstrip("/"), at


def _hint_for_unknown(name: str) -> str:
    return (
        f"{did_you_mean(name)}a model is a folder, a file, a Hub id (org/name), or {BUNDLED_MODEL}"
    )


def _from_folder(name: str, folder: Path, weights: bool) -> ResolvedFiles:
    config = folder / CONFIG
    if not os.path.isfile(config):
        raise _incomplete(name, folder, f"no {CONFIG}")
    files: tuple[Path, ...] = ()
    if weights:
        for candidate in WEIGHTS:
            if os.path.isfile(folder / candidate):
                files = with_shards(name, folder / candidate, lambda shard: folder / shard)
                break
        else:
            raise _incomplete(name, folder, f"none of {', '.join(WEIGHTS[::2])}")
    return _local_files(name, config, files)


def _incomplete(name: str, folder: Path, missing: str) -> ModelError:
    """Make the error for a folder that lacks something; says what it may be instead."""
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    text = f"{name}: the folder has {missing}"
    foreign = foreign_files(names)
    below = checkpoint_below(folder)
    other = below.relative_to(folder) if below else weights_among(names, WEIGHTS_SUFFIXES)
    if other is not None and (foreign is None or below):
        return ModelError(text, hint=f"did you mean {os.path.join(name, other)}?")
    if foreign is not None:
        return ModelError(f"{text}; it holds {foreign.what}", hint=foreign.hint)
    return ModelError(
        text,
        hint="a model folder holds config.json, preprocessor_config.json and model.safetensors",
    )


def _local_files(name: str, config: Path, weights: tuple[Path, ...]) -> ResolvedFiles:
    """Collect these files, and the others beside the configuration."""
    preprocessor = find_preprocessor(lambda file: _if_file(config.parent / file))
    card = None if preprocessor else _if_file(config.parent / MODEL_CARD)
    return ResolvedFiles(name, config, preprocessor, weights=weights, card=card)


def _if_file(path: Path) -> Path | None:
    return path if os.path.isfile(path) else None


def _from_file(name: str, path: Path) -> ResolvedFiles:
    if path.suffix.lower() == ".pt2":
        raise ModelError(
            f"{name}: a torch.export program, not a file of weights: refused",
            hint="save the weights: torch.save(model.state_dict(), 'weights.pth')",
        )
    if path.name == CONFIG or path.name in WEIGHTS[1::2]:
        raise ModelError(f"{name}: not a file of weights", hint=f"did you mean {path.parent}?")
    foreign = foreign_file(path)
    if foreign is not None:
        raise ModelError(f"{name}: {foreign.what}, not a file of weights", hint=foreign.hint)
    if not _is_weights(path.name):
        raise ModelError(
            f"{name}: not a file of weights", hint=f"one of {', '.join(WEIGHTS_SUFFIXES)}"
        )
    # Transformers saves a configuration beside the weights, the authors' code does not.
    config = path.parent / CONFIG
    if not os.path.isfile(config):
        return ResolvedFiles(name, None, None, weights=(path,), authors_yaml=_yaml_beside(path))
    return _local_files(name, config, (path,))


def _is_weights(name: str) -> bool:
    return name.lower().endswith(WEIGHTS_SUFFIXES)


def _yaml_beside(path: Path) -> Path | None:
    """Find the YAML file of the same name, or else the only one in the folder."""
    try:
        found = sorted(
            file for file in path.parent.iterdir() if file.suffix.lower() in YAML_SUFFIXES
        )
    except OSError:
        return None
    stem = path.name.split(".", 1)[0] if path.suffix.lower() == ".tar" else path.stem
    same = [file for file in found if file.stem.lower() == stem.lower()]
    chosen = (same or found)[:1] if same or len(found) == 1 else []
    return next((file for file in chosen if os.path.isfile(file)), None)
