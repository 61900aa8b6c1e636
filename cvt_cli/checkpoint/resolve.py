"""A bundled name, a Hub id, a folder or a file becomes local files.

The Hub's cache, tokens, endpoint and offline switch are `huggingface_hub`'s own business: it reads
`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cvt_cli.checkpoint.catalog import BUNDLED_FOLDER, BUNDLED_MODEL, bundled_names, known_names
from cvt_cli.errors import ModelError
from cvt_cli.system.signals import interruptible

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Newer, and of more than images: what it says of them, in an object of this name, goes first.
PROCESSOR = "processor_config.json"
IMAGE_PROCESSOR = "image_processor"
MODEL_CARD = "README.md"
# In order of preference; the second of each pair lists the shards of a split one.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_AGAIN = "what was fetched is kept: run the same command again"
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pth.tar", ".pt.tar")
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ResolvedFiles:
    """Where a checkpoint's files lie on this machine.

    Attributes:
        name: the checkpoint as it was named, without the revision.
        config, preprocessor: None where the checkpoint has none. The latter is
            `processor_config.json` where that one describes the preprocessing.
        weights: one file, or the shards; empty if they were not asked for.
        commit: the Hub's commit hash; None for what is not from the Hub.
        card: the model card; looked for only where there is no preprocessor.
        authors_yaml: the authors' YAML beside a file that has no configuration.
        weights_key: which network to take where a file holds several.
    """

    name: str
    config: Path | None
    preprocessor: Path | None
    weights: tuple[Path, ...]
    commit: str | None = None
    card: Path | None = None
    authors_yaml: Path | None = None
    weights_key: str | None = None

    def weights_digest(self) -> str:
        """SHA-256 of the weights' files, one after the other, in hexadecimal."""
        digest = hashlib.sha256()
        for path in self.weights:
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()


def resolve(
    name: str,
    revision: str | None = None,
    refresh: bool = False,
    offline: bool = False,
    weights: bool = True,
    weights_key: str | None = None,
) -> ResolvedFiles:
    """Find a checkpoint, and fetch what of it is missing here.

    Args:
        name: a bundled name, a folder, a file of weights, or a Hub id: `org/name`,
            `org/name@revision`.
        revision: branch, tag or commit hash on the Hub.
        refresh: ask the Hub for the newest commit even if one is in the cache.
        offline: make no request.
        weights: False fetches the JSON files only.
        weights_key: which network to take where a file holds several.

    Raises:
        ModelError: if it can't be had; says why and what to do.
    """
    files = _resolve(name, revision, refresh, offline, weights)
    return replace(files, weights_key=weights_key)


def _resolve(
    name: str, revision: str | None, refresh: bool, offline: bool, weights: bool
) -> ResolvedFiles:
    if name in bundled_names():
        return _from_folder(name, BUNDLED_FOLDER / name, weights)
    # Of a name that no path can have, os.path says False where Path raises.
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _from_folder(name, Path(path), weights)
    if os.path.isfile(path):
        return _from_file(name, Path(path))
    if os.path.isabs(path) or name.startswith((".", "~")) or _is_weights(path):
        raise ModelError(f"{name}: no such file or folder")
    repo, _, at = name.partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ModelError(f"{name}: no such model", hint=_hint_for_unknown(name))
    if revision and at and revision != at:
        raise ModelError(f"{name} and --revision {revision} name two revisions")
    return _HubRepo(repo, revision or at or None, refresh, offline).files(weights)


def _hint_for_unknown(name: str) -> str:
    close = difflib.get_close_matches(name, known_names(), n=1, cutoff=0.4)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}a model is a folder, a file, a Hub id (org/name), or {BUNDLED_MODEL}"


def _from_folder(name: str, folder: Path, weights: bool) -> ResolvedFiles:
    config = folder / CONFIG
    if not os.path.isfile(config):
        raise ModelError(
            f"{name}: the folder has no {CONFIG}",
            hint="a model folder holds config.json, preprocessor_config.json and model.safetensors",
        )
    files: tuple[Path, ...] = ()
    if weights:
        for candidate in WEIGHTS:
            if os.path.isfile(folder / candidate):
                files = _with_shards(name, folder / candidate, lambda shard: folder / shard)
                break
        else:
            raise ModelError(f"{name}: the folder has none of {', '.join(WEIGHTS[::2])}")
    return _local_files(name, config, files)


def _local_files(name: str, config: Path, weights: tuple[Path, ...]) -> ResolvedFiles:
    """These, and what lies beside the configuration."""
    preprocessor = _preprocessor(lambda file: _if_file(config.parent / file))
    card = None if preprocessor else _if_file(config.parent / MODEL_CARD)
    return ResolvedFiles(name, config, preprocessor, weights, card=card)


def _if_file(path: Path) -> Path | None:
    return path if os.path.isfile(path) else None


def _preprocessor(locate: Callable[[str], Path | None]) -> Path | None:
    """The file that describes the preprocessing."""
    newer = locate(PROCESSOR)
    return newer if newer and _describes_images(newer) else locate(PREPROCESSOR)


def _describes_images(path: Path) -> bool:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # whoever reads it says what is wrong
    return isinstance(values, dict) and values.get(IMAGE_PROCESSOR) is not None


def _from_file(name: str, path: Path) -> ResolvedFiles:
    if path.suffix.lower() == ".pt2":
        raise ModelError(
            f"{name}: a program of torch.export, not a file of weights; refused",
            hint="save the weights: torch.save(model.state_dict(), 'weights.pth')",
        )
    if not _is_weights(path.name):
        raise ModelError(
            f"{name}: not a file of weights", hint=f"one of {', '.join(WEIGHTS_SUFFIXES)}"
        )
    # Saved by Transformers, it has its configuration beside it; by the authors' code, none.
    config = path.parent / CONFIG
    if not os.path.isfile(config):
        return ResolvedFiles(name, None, None, (path,), authors_yaml=_yaml_beside(path))
    return _local_files(name, config, (path,))


def _is_weights(name: str) -> bool:
    return name.lower().endswith(WEIGHTS_SUFFIXES)


def _yaml_beside(path: Path) -> Path | None:
    """The YAML file of the same name, or else the only one in the folder."""
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


def _with_shards(name: str, file: Path, locate: Callable[[str], Path | None]) -> tuple[Path, ...]:
    """The file itself, or the shards that it lists."""
    if file.suffix != ".json":
        return (file,)
    try:
        shards = json.loads(file.read_text("utf-8"))["weight_map"].values()
        names = sorted({os.fspath(shard) for shard in shards})
    # A hostile list may be nested deeper than Python's stack.
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        names = []
    if not names:
        raise ModelError(f"{name}: {file.name} is corrupt: it lists no shards")
    paths = []
    for shard in names:
        # The list comes with the checkpoint: it must not lead out of it.
        if shard != os.path.basename(shard) or shard in ("", os.curdir, os.pardir):
            raise ModelError(f"{name}: {file.name} lists {shard!r}, which is no file beside it")
        path = locate(shard)
        if path is None or not os.path.isfile(path):
            raise ModelError(f"{name}: {shard}, listed in {file.name}, is missing")
        paths.append(path)
    return tuple(paths)


class _HubRepo:
    """One repository at one revision, through the cache of `huggingface_hub`."""

    def __init__(self, repo: str, revision: str | None, refresh: bool, offline: bool) -> None:
        self.repo = repo
        self.revision = revision
        self.refresh = refresh
        self.offline = offline
        self.commit: str | None = None

    def files(self, weights: bool) -> ResolvedFiles:
        """Configuration first: its commit is the one that all other files are taken from."""
        config = self.file(CONFIG)
        if config is None:
            raise ModelError(
                f"{self.repo} has no {CONFIG}", hint="is it a model in the Transformers layout?"
            )
        self.commit = config.parent.name
        preprocessor = _preprocessor(self.preprocessor)
        return ResolvedFiles(
            self.repo,
            config,
            preprocessor,
            self.weights() if weights else (),
            self.commit,
            None if preprocessor else self.optional(MODEL_CARD),
        )

    def preprocessor(self, filename: str) -> Path | None:
        """The file; None if there is none."""
        if (
            filename == PROCESSOR
            and not self.refresh
            and isinstance(self.cached(PREPROCESSOR), Path)
        ):
            # Another program has fetched what it needed; that costs no request now.
            found = self.cached(PROCESSOR)
            return found if isinstance(found, Path) else None
        return self.optional(filename) if filename == PROCESSOR else self.file(filename)

    def optional(self, filename: str) -> Path | None:
        """The file; None if there is none, or none can be had without a network."""
        if self.offline:
            found = self.cached(filename)
            return found if isinstance(found, Path) else None
        return self.file(filename)

    def weights(self) -> tuple[Path, ...]:
        """What the cache holds; else the first of the kinds that the repository has."""
        cached = (path for path in map(self.cached, WEIGHTS) if isinstance(path, Path))
        file = next(cached, None)
        if file is None:
            file = next((path for path in map(self.file, WEIGHTS) if path is not None), None)
        if file is None:
            raise ModelError(f"{self.repo} has none of {', '.join(WEIGHTS[::2])}")
        return _with_shards(self.repo, file, self.file)

    def cached(self, filename: str) -> Path | bool:
        """The file in the cache; True if the cache knows that there is none, else False."""
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            self.repo, filename, revision=self.commit or self.revision
        )
        return Path(found) if isinstance(found, str) else found is not None

    def file(self, filename: str) -> Path | None:  # noqa: PLR0912  # one line an error
        """The file, from the cache or the Hub; None if the repository has none of that name."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            # What is in the cache costs no request, unless a newer commit is asked for.
            if self.commit or not self.refresh:
                found = self.cached(filename)
                if found:
                    return found if isinstance(found, Path) else None
            if self.offline:
                # Even told to look at local files only, the client has requests of its own.
                raise self._unreachable(filename, None)
            if not self.commit:
                self.ask(filename)
            with interruptible():
                path = huggingface_hub.hf_hub_download(
                    self.repo, filename, revision=self.commit or self.revision
                )
            return Path(path)
        except ModelError:
            raise
        except errors.LocalEntryNotFoundError as error:
            raise self._unreachable(filename, error.__cause__) from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise ModelError(
                f"{self.repo} is gated: access must be granted on its page on the Hub",
                hint="ask for access there, then log in with `hf auth login` or set HF_TOKEN",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelError(
                f"{self.repo}: no such repository on the Hub, or it is private",
                hint="check the name; if private, log in with `hf auth login` or set HF_TOKEN",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelError(f"{self.repo} has no revision {self.revision}") from error
        except errors.HFValidationError as error:
            raise ModelError(f"{self.repo}: not a Hub id: {_one_line(error)}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            raise ModelError(
                f"{self.repo}: {filename} could not be fetched: the Hub answers {status} "
                f"({_one_line(error.server_message or status)})",
                hint="log in again with `hf auth login`, or set HF_TOKEN to a valid token"
                if status in (401, 403)
                else _AGAIN,
            ) from error
        # The client's transport errors differ from release to release: httpx's, requests', OSError.
        except Exception as error:
            raise ModelError(
                f"{self.repo}: {filename} could not be fetched: {_one_line(error)}",
                hint=_AGAIN,
            ) from error

    def ask(self, filename: str) -> None:
        """Ask the Hub for the file's headers, once: a download tries for half a minute before it
        says that there is no network."""
        import huggingface_hub
        from huggingface_hub import constants, errors

        url = huggingface_hub.hf_hub_url(self.repo, filename, revision=self.revision)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (errors.HfHubHTTPError, errors.HFValidationError):
            raise
        except Exception as error:
            raise self._unreachable(filename, error) from error

    def _unreachable(self, filename: str, error: BaseException | None) -> ModelError:
        from huggingface_hub import constants

        told = self.offline or constants.HF_HUB_OFFLINE
        why = "offline" if told else f"the Hub can't be reached ({_one_line(error)})"
        at = f"@{self.revision}" if self.revision else ""
        if self.refresh and isinstance(self.cached(filename), Path):
            return ModelError(
                f"{self.repo}{at}: can't ask for a newer commit: {why}",
                hint="without --refresh the one in the cache is used",
            )
        return ModelError(
            f"{self.repo}{at}: {filename} is not in the cache, and {why}",
            hint=f"fetch it once with a network: `cvt models --download {self.repo}{at}`; "
            f"or use the model that ships with cvt: `--model {BUNDLED_MODEL}`",
        )


def _one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
