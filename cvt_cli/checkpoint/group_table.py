"""Tables of groups of labels, such as "cat" for the five breeds of ImageNet."""

from dataclasses import dataclass
from pathlib import Path

from cvt_cli.errors import UsageError
from cvt_cli.system.files import read_text
from cvt_cli.system.text import reason_of, visible

# The name of the table that ships with the package.
IMAGENET = "imagenet"
MAX_BYTES = 2**26

_FORM = "each line is a label or a WordNet id, a tab, and its group"


@dataclass(frozen=True, slots=True)
class GroupedLabel:
    """A line of a table.

    Attributes:
        label: as `inference.labels.LabelMatcher` finds it.
        where: file and line, for messages.
    """

    label: str
    group: str
    where: str


def read_groups(name: str) -> list[GroupedLabel]:
    """Read a table of groups.

    Args:
        name: `imagenet`, or the path of a UTF-8 file with a label or WordNet id, a tab and a group
            in each line. Empty lines, and lines that begin with `#` and have no tab, are passed
            over.

    Raises:
        UsageError: if it can't be read as that.
    """
    bundled = name == IMAGENET
    path = Path(__file__).with_name("imagenet_groups.tsv") if bundled else Path(name).expanduser()
    hint = f"{_FORM}; or --groups {IMAGENET}"
    try:
        lines = read_text(path, MAX_BYTES).splitlines()
    except OSError as error:
        raise UsageError(f"--groups: {path} can't be read: {reason_of(error)}", hint=hint) from None
    except UnicodeDecodeError:
        raise UsageError(f"--groups: {path} is not UTF-8", hint=hint) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (line.startswith("#") and "\t" not in line):
            continue
        label, _, group = (part.strip() for part in line.partition("\t"))
        if not label or not group or "\t" in group:
            raise UsageError(f"{path}, line {number}: {visible(line.strip())}", hint=_FORM)
        found.append(GroupedLabel(label, group, f"{path}, line {number}"))
    if not found:
        raise UsageError(f"--groups: {path} has no group", hint=_FORM)
    return found
