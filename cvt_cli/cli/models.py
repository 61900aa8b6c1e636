"""`cvt models`: the checkpoints known by name, and which of them are on this machine."""

from typing import TYPE_CHECKING, Annotated, Any

from cvt_cli.cli import options
from cvt_cli.cli.model_options import RefreshOption, RevisionOption
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import ReportOptions
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.system.text import short_reason

if TYPE_CHECKING:
    from cvt_cli.output.report_tables import Report

TAG = "cvt"  # the Hub's tag for models of this architecture
REACH_SECONDS = 10
DATASET = "dataset:"  # prefix of the tags that name datasets

EXAMPLES = """\
[bold]Examples[/]

cvt models

cvt models --download microsoft/cvt-21

cvt models --search food

cvt models --format json | jq '.[] | select(.cached) | .model'
"""


@grouped
def models(
    *,
    download: Annotated[
        str | None,
        options.MODEL.option(
            "--download",
            metavar="NAME",
            help="Download a model from the Hub and print its folder.",
        ),
    ] = None,
    search: Annotated[
        str | None,
        options.MODEL.option(
            "--search",
            metavar="TEXT",
            help="List the CvT models on the Hub whose names contain this text; '' for all.",
        ),
    ] = None,
    revision: RevisionOption = None,
    refresh: RefreshOption = False,
    report: ReportOptions,
) -> None:
    """List the published models and those that ship with cvt: labels, size, cost, accuracy, cached
    or not."""
    if download is not None and search is not None:
        raise UsageError("--download and --search exclude each other")
    if download is None and (revision or refresh):
        raise UsageError("--revision and --refresh need --download")
    if download is not None and (report.format_ or report.output):
        raise UsageError("--download prints a folder: leave --format and --output out")

    from cvt_cli.output.report_tables import write_report

    format_ = report.pick_format()
    if download is not None:
        from cvt_cli.checkpoint.resolve import resolve

        print(resolve(download, revision, refresh, verify=True).weights[0].parent)
        return
    found = _catalogue() if search is None else _found(search)
    write_report(found, format_, report.output)


def _catalogue() -> "Report":
    from cvt_cli.checkpoint.catalog import known_names
    from cvt_cli.inspection.facts import inspect_checkpoint
    from cvt_cli.inspection.models_table import catalogue_report

    return catalogue_report([inspect_checkpoint(name, offline=True) for name in known_names()])


def _found(text: str) -> "Report":
    from huggingface_hub import HfApi, constants, get_session

    from cvt_cli.checkpoint import hub_timeouts
    from cvt_cli.inspection.models_table import found_report

    if constants.HF_HUB_OFFLINE:
        raise ModelError("the Hub can't be searched: offline", hint="unset HF_HUB_OFFLINE")
    hub_timeouts.check_hub_timeouts()
    records: list[dict[str, Any]] = []
    try:
        # The search alone would try for half a minute before it gives up on the Hub.
        get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=REACH_SECONDS)
        for info in HfApi().list_models(filter=TAG, search=text or None, sort="downloads"):
            tags = info.tags or []
            datasets = [t.removeprefix(DATASET) for t in tags if t.startswith(DATASET)]
            records.append(
                {
                    "model": info.id,
                    "downloads": info.downloads,
                    "likes": info.likes,
                    "task": info.pipeline_tag,
                    "datasets": datasets,
                }
            )
    # Which error the client raises depends on its release: httpx's, requests' or OSError.
    except Exception as error:
        reason = short_reason(error)
        raise ModelError(
            f"the Hub can't be searched: {reason}", hint="`cvt models` lists the published ones"
        ) from error
    return found_report(records)
