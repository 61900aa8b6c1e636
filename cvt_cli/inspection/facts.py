"""Facts about a checkpoint from its configuration alone. Needs no torch, and for a published name
no file."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.checkpoint.catalog import PUBLISHED, CatalogEntry, bundled_names
from cvt_cli.checkpoint.checkpoint_files import MODEL_CARD, ResolvedFiles
from cvt_cli.checkpoint.layouts import TRANSFORMERS
from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.inference.scores import kind_of
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cost import Cost, Total, count_cost, kv_tokens
from cvt_cli.records import ScoreKind

if TYPE_CHECKING:
    from cvt_cli.model.cost import Layer

DEFAULT_IMAGE_SIZE = (224, 224)  # where the preprocessing leaves the size open
SHA256_DIGITS = 64


@dataclass(frozen=True)
class FileFacts:
    """Facts about a file of a checkpoint on this machine. `sha256` is in hexadecimal."""

    path: Path

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Digest, taken from the name in the Hub's cache for large files, else computed."""
        blob = self.path.resolve()
        if blob.parent.name == "blobs" and len(blob.name) == SHA256_DIGITS:
            return blob.name
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the facts as a JSON value."""
        return {
            "name": self.path.name,
            "path": str(self.path),
            "size": self.size,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class Inspection:
    """Facts about a checkpoint that are known without opening its weights.

    Attributes:
        source: "bundled", "folder", "file", "Hub", or "catalogue": nothing of it is here.
        labels: by class index; None for a published checkpoint of which nothing is here.
        preprocessing: scaled to the size that was asked for.
        image_size: (height, width) in pixels.
        files: what is on this machine; None if nothing is.
        published: what its authors publish, for the published ones.
        score_kind: what makes scores of its logits.
        layout: whose names the weights have.
    """

    name: str
    source: str
    config: CvtConfig
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    image_size: tuple[int, int]
    cost: Cost
    revision: str | None = None
    files: ResolvedFiles | None = None
    published: CatalogEntry | None = None
    layout: str = TRANSFORMERS.name
    card: dict[str, Any] = field(default_factory=dict)
    score_kind: ScoreKind = ScoreKind.SOFTMAX

    @property
    def has_local_weights(self) -> bool:
        """Whether the weights are on this machine."""
        return self.files is not None and bool(self.files.weights)

    @cached_property
    def file_facts(self) -> list[FileFacts]:
        """Facts about the files on this machine, the weights last."""
        if self.files is None:
            return []
        files = self.files
        paths = (files.config, files.preprocessor, files.authors_yaml, *files.weights)
        return [FileFacts(path) for path in paths if path is not None]

    def as_json(self, layers: bool = False) -> dict[str, Any]:
        """Return all facts as a JSON value with raw numbers. `layers` adds a list of all layers."""
        total = self.cost.total
        document: dict[str, Any] = {
            "model": self.name,
            "source": self.source,
            "revision": self.revision,
            "commit": self.files.commit if self.files else None,
            "cached": self.has_local_weights,
            "layout": self.layout,
            "files": [facts.as_json() for facts in self.file_facts],
            "license": self.card.get("license"),
            "datasets": self.card.get("datasets"),
            "published": self._published_json(),
            "num_labels": self.config.num_labels,
            "activation": self.config.hidden_act,
            "scores": str(self.score_kind),
            "preprocessing": self.preprocessing.in_words(),
            "image_size": list(self.image_size),
            "batch_size": self.cost.batch_size,
            "dtype": self.cost.dtype,
            **_numbers(total),
            "flops": total.flops,
            "weight_bytes": self.cost.weight_bytes,
            "peak_activation_bytes": self.cost.peak_activation_bytes,
            "kinds": {kind: _numbers(part) for kind, part in self.cost.by_kind().items()},
            "stages": self.stage_records(),
            "head": _numbers(self.head_total),
            "config": self.config.to_dict(),
        }
        if layers:
            document["layers"] = [layer_record(layer) for layer in self.cost.layers()]
        return document

    @property
    def head_total(self) -> Total:
        """Total of the last norm and the head, which belong to no stage."""
        return sum((layer.total for layer in self.cost.last), Total())

    def stage_records(self) -> list[dict[str, Any]]:
        """Return a flat record for each stage, numbered from 1 as in the paper."""
        config = self.config
        records = []
        for stage in self.cost.stages:
            i = stage.index
            keys = kv_tokens(config, i, stage.tokens)
            records.append(
                {
                    "stage": i + 1,
                    "rows": stage.tokens[0],
                    "columns": stage.tokens[1],
                    "class_token": config.cls_token[i],
                    "width": config.embed_dim[i],
                    "heads": config.num_heads[i],
                    "depth": config.depth[i],
                    "kernel": config.patch_sizes[i],
                    "stride": config.patch_stride[i],
                    "projection": config.qkv_projection_method[i],
                    "key_rows": keys[0],
                    "key_columns": keys[1],
                    **_numbers(stage.total),
                }
            )
        return records

    def _published_json(self) -> dict[str, Any] | None:
        if self.published is None:
            return None
        return {
            "gmacs": self.published.gmacs,
            "top1": self.published.top1,
            "pretrained_on": self.published.pretrained_on,
        }


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The workload that the cost is counted for.

    Attributes:
        image_size: (height, width) in pixels; None for the checkpoint's own.
        batch_size, dtype: as for `model.cost.count`.
    """

    image_size: tuple[int, int] | None = None
    batch_size: int = 1
    dtype: str = "float32"


ONE_IMAGE = Workload()


def inspect_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    refresh: bool = False,
    offline: bool = False,
    needs_labels: bool = False,
    weights_key: str | None = None,
    workload: Workload = ONE_IMAGE,
) -> Inspection:
    """Collect the facts about a checkpoint. From the Hub at most the JSON files are fetched; for a
    published one nothing, unless its labels are needed.

    Args:
        name, revision, refresh, offline, weights_key: as for `resolve`.
        needs_labels: fetch the configuration of a published one too.
        workload: what the cost is counted for.

    Raises:
        ModelError: if it can't be found or loaded, or is not a CvT.
        UsageError: if the image size is too small for the network.
    """
    published = None if revision else next((e for e in PUBLISHED if e.name == name), None)
    files = None if refresh else _here(name, revision)
    if files is None and (published is None or refresh or needs_labels):
        files = resolve(name, revision, refresh, offline=offline, weights=False)
        files = _here(name, files.commit or revision) or files
    if files is not None:
        files = replace(files, weights_key=weights_key)
        checkpoint = load(files)
        config, preprocessing = checkpoint.config, checkpoint.preprocessing
        labels: tuple[str, ...] | None = checkpoint.labels
        score_kind = kind_of(checkpoint)
        layout = checkpoint.layout
    else:
        assert published is not None
        layout = TRANSFORMERS.name
        config, preprocessing, labels = published.config, published.preprocessing, None
        score_kind = ScoreKind.SOFTMAX
    if workload.image_size is not None:
        preprocessing = preprocessing.scaled_to(workload.image_size)
    size = preprocessing.image_size or DEFAULT_IMAGE_SIZE
    try:
        cost = count_cost(config, size, workload.batch_size, dtype=workload.dtype)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    return Inspection(
        name=name,
        source=_source(name, files),
        config=config,
        labels=labels,
        preprocessing=preprocessing,
        image_size=size,
        cost=cost,
        revision=revision,
        files=files,
        published=published,
        layout=layout,
        card=_card(files),
        score_kind=score_kind,
    )


def _here(name: str, revision: str | None) -> ResolvedFiles | None:
    """Find the files of a checkpoint on this machine: with its weights, without, or None."""
    for weights in (True, False):
        try:
            return resolve(name, revision, offline=True, weights=weights)
        except ModelError:
            continue
    return None


def _source(name: str, files: ResolvedFiles | None) -> str:
    if files is None:
        return "catalogue"
    if files.commit is not None:
        return "Hub"
    if name in bundled_names():
        return "bundled"
    return "folder" if Path(name).expanduser().is_dir() else "file"


def _card(files: ResolvedFiles | None) -> dict[str, Any]:
    """Read the header of the model card beside the configuration; empty without one."""
    if files is None or files.config is None:
        return {}
    card = files.config.parent / MODEL_CARD
    if not card.is_file():
        return {}
    import huggingface_hub

    try:
        return huggingface_hub.metadata_load(card) or {}
    # A broken header of a card is ignored: no fact depends on it.
    except Exception:
        return {}


def layer_record(layer: "Layer") -> dict[str, Any]:
    """Return a flat record of a layer; shapes are lists with the batch first."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape_in": list(layer.shape_in),
        "shape_out": list(layer.shape_out),
        **_numbers(layer.total),
    }


def _numbers(total: Total) -> dict[str, int]:
    return {
        "parameters": total.parameters,
        "macs": total.macs,
        "activation_bytes": total.activation_bytes,
    }
