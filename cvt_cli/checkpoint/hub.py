"""A repository on the Hub, through the cache of `huggingface_hub`."""

import difflib
import errno
import json
import warnings
from pathlib import Path

from cvt_cli.checkpoint import hub_timeouts
from cvt_cli.checkpoint.catalog import BUNDLED_MODEL, known_names
from cvt_cli.checkpoint.checkpoint_files import (
    CONFIG,
    MODEL_CARD,
    PREPROCESSOR,
    PROCESSOR,
    WEIGHTS,
    ResolvedFiles,
    find_preprocessor,
    no_cvt,
    with_shards,
)
from cvt_cli.checkpoint.foreign import ON_THE_HUB, foreign_files
from cvt_cli.checkpoint.integrity import damaged, is_damaged
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.system.signals import interruptible
from cvt_cli.system.text import reason_of, short_reason

_AGAIN = "what was fetched is kept: run the same command again"
# Errors in writing a file.
_STORING = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


def did_you_mean(name: str) -> str:
    """Return the start of a hint: a known name that is close, ignoring case; empty without one."""
    known = {each.lower(): each for each in known_names()}
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    return f"did you mean {known[close[0]]}? " if close and known[close[0]] != name else ""


class HubRepo:
    """A repository at one revision, through the cache of `huggingface_hub`. The arguments are
    those of `resolve`."""

    def __init__(
        self,
        repo: str,
        revision: str | None,
        refresh: bool,
        *,
        offline: bool,
        verify: bool = False,
    ) -> None:
        self.repo = repo
        self.revision = revision
        self.refresh = refresh
        self.offline = offline
        self.verify = verify or refresh
        self.commit: str | None = None

    def files(self, weights: bool) -> ResolvedFiles:
        """Find all files, the configuration first: the others are taken from the same commit."""
        config = self.file(CONFIG)
        if config is None:
            raise self._incomplete(f"no {CONFIG}")
        self.commit = config.parent.name
        self.check_type(config)
        preprocessor = find_preprocessor(self.preprocessor)
        return ResolvedFiles(
            self.repo,
            config=config,
            preprocessor=preprocessor,
            weights=self.weights() if weights else (),
            commit=self.commit,
            card=None if preprocessor else self.optional(MODEL_CARD),
        )

    def check_type(self, config: Path) -> None:
        """Check the architecture before the weights are fetched."""
        try:
            values = json.loads(config.read_text("utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            return  # reading it reports the error
        if isinstance(values, dict) and values.get("model_type") != "cvt":
            raise no_cvt(self.repo, values.get("model_type"))

    def preprocessor(self, filename: str) -> Path | None:
        """Find the file that describes the preprocessing; None if there is none."""
        if (
            filename == PROCESSOR
            and not self.refresh
            and isinstance(self.cached(PREPROCESSOR), Path)
        ):
            # Files that another program has fetched need no request.
            found = self.cached(PROCESSOR)
            return found if isinstance(found, Path) else None
        return self.optional(filename) if filename == PROCESSOR else self.file(filename)

    def optional(self, filename: str) -> Path | None:
        """Find a file; None if there is none, or it can't be fetched without a network."""
        if self.offline:
            found = self.cached(filename)
            return found if isinstance(found, Path) else None
        return self.file(filename)

    def weights(self) -> tuple[Path, ...]:
        """Find the weights: those in the cache, or else the first kind that the repository has."""
        cached = [name for name in WEIGHTS if isinstance(self.cached(name), Path)]
        found = map(self.file, cached[:1] or WEIGHTS)
        file = next((path for path in found if path is not None), None)
        if file is None:
            raise self._incomplete(f"none of {', '.join(WEIGHTS[::2])}")
        return with_shards(self.repo, file, self.file)

    def _incomplete(self, missing: str) -> ModelError:
        """Make the error for a repository that lacks something; says what it holds instead."""
        text = f"{self.repo} has {missing}"
        foreign = foreign_files(name for name in ON_THE_HUB if self._exists(name))
        if foreign is not None:
            return ModelError(f"{text}; it holds {foreign.what}", hint=foreign.hint)
        return ModelError(text, hint="is it a model in the Transformers layout?")

    def _exists(self, filename: str) -> bool:
        """Ask the Hub whether it has a file; False where nothing can be learned."""
        from huggingface_hub import errors

        if self.is_offline:
            return False
        try:
            self.ask(filename)
        except (ModelError, errors.HfHubHTTPError):
            return False
        return True

    def cached(self, filename: str) -> Path | bool:
        """Look a file up in the cache; True if the cache knows that it does not exist, False if it
        knows nothing."""
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            self.repo, filename, revision=self.commit or self.revision
        )
        return Path(found) if isinstance(found, str) else found is not None

    def file(self, filename: str) -> Path | None:
        """Find a file in the cache or on the Hub; None if the repository does not have it.

        A damaged file is fetched again, once."""
        path = self.fetch(filename)
        if path is None or not is_damaged(path, thoroughly=self.verify):
            return path
        if self.is_offline:
            raise damaged(self.repo, path)
        warnings.warn(
            f"{self.repo}: {filename} in the cache was damaged; fetching it again", stacklevel=2
        )
        path = self.fetch(filename, anew=True)
        if path is not None and is_damaged(path, thoroughly=True):
            raise damaged(self.repo, path)
        return path

    @property
    def is_offline(self) -> bool:
        """Whether requests are forbidden."""
        from huggingface_hub import constants

        return self.offline or bool(constants.HF_HUB_OFFLINE)

    def fetch(self, filename: str, anew: bool = False) -> Path | None:  # noqa: PLR0912
        """Get a file from the cache or the Hub, without checking it.

        Args:
            anew: from the Hub, in place of what the cache has.
        """
        import huggingface_hub
        from huggingface_hub import constants, errors

        try:
            # Files in the cache need no request, unless a newer commit is asked for.
            if not anew and (self.commit or not self.refresh):
                found = self.cached(filename)
                if found:
                    return found if isinstance(found, Path) else None
            if self.offline:
                # The client makes requests even if it is told to use local files only.
                raise self._unreachable(filename, None)
            hub_timeouts.check_hub_timeouts()
            if not self.commit:
                self.ask(filename)
            with interruptible():
                path = huggingface_hub.hf_hub_download(
                    self.repo,
                    filename,
                    revision=self.commit or self.revision,
                    force_download=anew,
                )
            return Path(path)
        except (ModelError, UsageError):
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
                hint=f"{did_you_mean(self.repo)}check the name; if private, log in with "
                "`hf auth login` or set HF_TOKEN",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelError(f"{self.repo} has no revision {self.revision}") from error
        except UnicodeEncodeError as error:  # in the headers of a request
            raise ModelError(
                f"{self.repo}: {filename} could not be fetched: the token has a character that is "
                "not ASCII",
                hint="set HF_TOKEN to the token alone, without quotation marks",
            ) from error
        except errors.HFValidationError as error:
            raise ModelError(f"{self.repo}: not a Hub id: {short_reason(error)}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            raise ModelError(
                f"{self.repo}: {filename} could not be fetched: the Hub answers {status} "
                f"({short_reason(error.server_message or status)})",
                hint="log in again with `hf auth login`, or set HF_TOKEN to a valid token"
                if status in (401, 403)
                else _AGAIN,
            ) from error
        except OSError as error:
            if error.errno not in _STORING:
                raise self._not_fetched(filename, error) from error
            raise ModelError(
                f"{self.repo}: {filename} can't be stored in {constants.HF_HUB_CACHE}: "
                f"{reason_of(error)}",
                hint="make room there, or set HF_HOME to a folder that can be written to",
            ) from error
        # Which error the client raises depends on its release: httpx's, requests' or OSError.
        except Exception as error:
            raise self._not_fetched(filename, error) from error

    def _not_fetched(self, filename: str, error: Exception) -> ModelError:
        return ModelError(
            f"{self.repo}: {filename} could not be fetched: {short_reason(error)}", hint=_AGAIN
        )

    def ask(self, filename: str) -> None:
        """Ask the Hub once for the file's headers: a download would try for half a minute before it
        reports that there is no network."""
        import huggingface_hub
        from huggingface_hub import constants, errors

        url = huggingface_hub.hf_hub_url(self.repo, filename, revision=self.commit or self.revision)
        try:
            huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (errors.HfHubHTTPError, errors.HFValidationError, UnicodeEncodeError):
            raise
        except Exception as error:
            raise self._unreachable(filename, error) from error

    def _unreachable(self, filename: str, error: BaseException | None) -> ModelError:
        from huggingface_hub import constants

        if not self.is_offline and "://" not in constants.ENDPOINT:
            return ModelError(
                f"{self.repo}: {filename} can't be fetched: HF_ENDPOINT is {constants.ENDPOINT!r}, "
                "not an address",
                hint=f"set it to https://{constants.ENDPOINT}",
            )
        why = "offline" if self.is_offline else f"the Hub can't be reached ({short_reason(error)})"
        at = f"@{self.revision}" if self.revision else ""
        if self.refresh and isinstance(self.cached(filename), Path):
            return ModelError(
                f"{self.repo}{at}: can't check for a newer commit: {why}",
                hint="without --refresh, cvt uses the one in the cache",
            )
        return ModelError(
            f"{self.repo}{at}: {filename} is not in the cache, and {why}",
            hint=f"download it once while online: `cvt models --download {self.repo}{at}`; "
            f"or use the model that ships with cvt: `--model {BUNDLED_MODEL}`",
        )
