"""Keywords in an XMP packet, which is RDF in XML. Everything else in it stays.

A namespace of our own keeps the model, labels and scores, and which keywords were added, so that
those alone are replaced or removed later: a keyword that was there before is not ours.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cvt_cli.errors import CvtError
from cvt_cli.tagging.keywords import Keyword

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META = "adobe:ns:meta/"
DC = "http://purl.org/dc/elements/1.1/"
LIGHTROOM = "http://ns.adobe.com/lightroom/1.0/"
DIGIKAM = "http://www.digikam.org/ns/1.0/"
OURS = "urn:x-cvt-cli:tags:1.0/"
_PREFIXES = {"x": META, "rdf": RDF, "dc": DC, "lr": LIGHTROOM, "digiKam": DIGIKAM, "cvt": OURS}
# Bytes of a packet, at most: real programs write some hundred thousand.
MAX_BYTES = 2**25

_DECLARED = re.compile(r"""\sxmlns:([A-Za-z_][\w.-]*)\s*=\s*["']([^"'<&]+)["']""")
# No program writes these, and entities can make XML expand without limit.
_FORBIDDEN = re.compile(r"<!(?!--|\[CDATA\[)")
_RESERVED_PREFIX = re.compile(r"ns\d+|xml|xmlns")
_SCORE_DIGITS = 6


class TagError(CvtError):
    """A picture could not be tagged; it is unchanged."""


@dataclass(frozen=True, slots=True)
class Field:
    """A property with keywords.

    Attributes:
        namespace, name: of the property.
        container: what RDF makes it in: Bag or Seq.
        separator: between the levels of a keyword; None for the last level alone.
    """

    namespace: str
    name: str
    container: str
    separator: str | None

    def value(self, keyword: Keyword) -> str:
        """Format a keyword for this property."""
        return keyword.flat if self.separator is None else keyword.joined(self.separator)


SUBJECT = Field(DC, "subject", "Bag", None)
FIELDS = (
    SUBJECT,
    Field(LIGHTROOM, "hierarchicalSubject", "Bag", "|"),
    Field(DIGIKAM, "TagsList", "Seq", "/"),
)
# The keywords that were added to IPTC, of which this packet keeps the account.
IPTC = Field(OURS, "keywords", "Bag", None)


@dataclass(frozen=True, slots=True)
class _Known:
    """Contents of our namespace.

    Attributes:
        labels: each with its score, as texts.
        added: the keywords that were added to each property.
    """

    model: str
    labels: list[tuple[str, str]]
    added: dict[Field, list[str]]


class Packet:
    """An XMP packet.

    Args:
        data: UTF-8 or UTF-16; None or blank for a new packet.

    Attributes:
        is_changed: whether `tag` has changed it.

    Raises:
        TagError: if it is broken, or no XMP.
    """

    def __init__(self, data: bytes | None) -> None:
        self.is_changed = False
        self._root = _new() if data is None or not data.strip(b"\0 \t\r\n") else _parse(data)
        rdf = self._root if self._root.tag == f"{{{RDF}}}RDF" else self._root.find(f"{{{RDF}}}RDF")
        if rdf is None:
            raise TagError("the XMP in it is broken: it has no rdf:RDF")
        self._rdf = rdf
        self._mine: dict[Field, list[str]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether the packet holds nothing at all."""
        return len(self._rdf) == 0

    def added(self, field: Field) -> list[str]:
        """List the keywords that an earlier run added to a property."""
        return [text for each in self._find(OURS, field.name) for text in _items(each)]

    def tag(self, keywords: Sequence[Keyword], model: str, iptc: Sequence[str] = ()) -> None:
        """Put these keywords in place of those that an earlier run added.

        Args:
            keywords: none to remove what was added.
            model: the name of the model, if it is known.
            iptc: keywords that are added to IPTC besides.
        """
        before = self._known()
        for field in FIELDS:
            self.is_changed |= self._replace(
                field, list(dict.fromkeys(map(field.value, keywords))), before.added[field]
            )
        after = _Known(model, _told(keywords), {**self._mine, IPTC: list(iptc)})
        if not keywords:
            after = _Known("", [], {field: [] for field in (*FIELDS, IPTC)})
        if after != before:
            self.is_changed = True
            self._forget()
            if keywords:
                self._account(after)

    def write(self) -> bytes:
        """Return the packet as UTF-8, for a sidecar file."""
        try:
            text = ET.tostring(self._root, encoding="unicode")
        except RecursionError:
            raise TagError("the XMP in it is nested too deeply") from None
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()

    def _find(self, namespace: str, name: str) -> list[ET.Element]:
        return [
            child
            for description in self._rdf.findall(f"{{{RDF}}}Description")
            for child in description.findall(f"{{{namespace}}}{name}")
        ]

    def _known(self) -> "_Known":
        """Read what an earlier run has left, even if another program has rewritten it."""
        models = [each.text or "" for each in self._find(OURS, "model")]
        for description in self._rdf.findall(f"{{{RDF}}}Description"):
            models += [text] if (text := description.get(f"{{{OURS}}}model")) is not None else []
        labels = []
        for each in self._find(OURS, "labels"):
            container = _container(each)
            items = container.findall(f"{{{RDF}}}li") if container is not None else []
            labels += [(_member(item, "label"), _member(item, "score")) for item in items]
        added = {field: self.added(field) for field in (*FIELDS, IPTC)}
        return _Known(next(iter(models), ""), labels, added)

    def _replace(self, field: Field, wanted: list[str], before: Sequence[str]) -> bool:
        """Put keywords in place of ours in a property, and tell whether that changed it. Ours are
        then noted in `_mine`, without those that were there before."""
        gone = set(before) - set(wanted)
        there: set[str] = set()
        is_changed = False
        for each in self._find(field.namespace, field.name):
            container = _container(each)
            if container is None:
                there.add((each.text or "").strip())
                continue
            for item in container.findall(f"{{{RDF}}}li"):
                text = item.text or ""
                if text in gone:
                    gone.discard(text)
                    container.remove(item)
                    is_changed = True
                else:
                    there.add(text)
            if len(container) == 0:
                self._drop(each)
        new = [text for text in wanted if text not in there]
        if new:
            self._append(field, new)
        self._mine[field] = [text for text in wanted if text in before or text in new]
        return is_changed or bool(new)

    def _append(self, field: Field, texts: Sequence[str]) -> None:
        found = self._find(field.namespace, field.name)
        if not found:
            description = self._rdf.find(f"{{{RDF}}}Description")
            if description is None:
                description = self._new_description()
            found = [ET.SubElement(description, f"{{{field.namespace}}}{field.name}")]
            found[0].tail = "\n"
        container = _container(found[0])
        if container is None:
            # Text in place of a list is the first keyword.
            first = (found[0].text or "").strip()
            found[0].text = None
            container = ET.SubElement(found[0], f"{{{RDF}}}{field.container}")
            texts = [*([first] if first else ()), *texts]
        for text in texts:
            ET.SubElement(container, f"{{{RDF}}}li").text = text

    def _new_description(self) -> ET.Element:
        # All descriptions in a packet have the same subject.
        about = f"{{{RDF}}}about"
        other = self._rdf.find(f"{{{RDF}}}Description")
        made = ET.SubElement(self._rdf, f"{{{RDF}}}Description")
        made.set(about, other.get(about, "") if other is not None else "")
        made.tail = "\n"
        return made

    def _account(self, known: "_Known") -> None:
        """Record what was added, and by which model."""
        description = self._new_description()
        if known.model:
            ET.SubElement(description, f"{{{OURS}}}model").text = known.model
        labels = ET.SubElement(description, f"{{{OURS}}}labels")
        sequence = ET.SubElement(labels, f"{{{RDF}}}Seq")
        for label, score in known.labels:
            item = ET.SubElement(sequence, f"{{{RDF}}}li", {f"{{{RDF}}}parseType": "Resource"})
            ET.SubElement(item, f"{{{OURS}}}label").text = label
            ET.SubElement(item, f"{{{OURS}}}score").text = score
        for field, texts in known.added.items():
            if texts:
                element = ET.SubElement(description, f"{{{OURS}}}{field.name}")
                bag = ET.SubElement(element, f"{{{RDF}}}Bag")
                for text in texts:
                    ET.SubElement(bag, f"{{{RDF}}}li").text = text

    def _forget(self) -> None:
        """Remove everything in our namespace."""
        start = f"{{{OURS}}}"
        for description in self._rdf.findall(f"{{{RDF}}}Description"):
            for child in list(description):
                if isinstance(child.tag, str) and child.tag.startswith(start):
                    description.remove(child)
            for name in [name for name in description.attrib if name.startswith(start)]:
                del description.attrib[name]
            if len(description) == 0 and set(description.attrib) <= {f"{{{RDF}}}about"}:
                self._rdf.remove(description)

    def _drop(self, element: ET.Element) -> None:
        for description in self._rdf.findall(f"{{{RDF}}}Description"):
            if element in list(description):
                description.remove(element)


def _told(keywords: Sequence[Keyword]) -> list[tuple[str, str]]:
    return [(each.label, f"{each.score:.{_SCORE_DIGITS}g}") for each in keywords]


def _member(item: ET.Element, name: str) -> str:
    """Return a member of a structure, which may be written as an element, also within a
    description, or as an attribute."""
    full = f"{{{OURS}}}{name}"
    for each in (item, *item.findall(f"{{{RDF}}}Description")):
        found = each.find(full)
        if found is not None:
            return found.text or ""
        if full in each.attrib:
            return each.attrib[full]
    return ""


def _new() -> ET.Element:
    for prefix, uri in _PREFIXES.items():
        ET.register_namespace(prefix, uri)
    root = ET.Element(f"{{{META}}}xmpmeta")
    root.text = "\n"
    rdf = ET.SubElement(root, f"{{{RDF}}}RDF")
    rdf.text, rdf.tail = "\n", "\n"
    return root


def _parse(data: bytes) -> ET.Element:
    """Read a packet, with its comments. Raises: TagError."""
    if len(data) > MAX_BYTES:
        raise TagError(f"the XMP in it has more than {MAX_BYTES >> 20} MB")
    utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig").strip("\0 \t\r\n\ufeff")
    except UnicodeDecodeError:
        raise TagError("the XMP in it is broken: it is not UTF-8") from None
    if _FORBIDDEN.search(text):
        raise TagError("the XMP in it has declarations (a DTD), which XMP never has")
    _keep_prefixes(text)
    text = re.sub(r"\A<\?xml[^>]*\?>", "", text)
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True, insert_pis=True))
    try:
        parser.feed(text)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError) as error:
        raise TagError(f"the XMP in it is broken: {error}") from None
    return root


def _keep_prefixes(text: str) -> None:
    """Make the packet keep its namespace prefixes when it is written."""
    declared = dict(_DECLARED.findall(text))
    for prefix, uri in {**_PREFIXES, **declared}.items():
        if not _RESERVED_PREFIX.fullmatch(prefix):
            ET.register_namespace(prefix, uri)
    known = set(declared.values())
    for prefix, uri in _PREFIXES.items():
        if uri not in known and declared.get(prefix, uri) != uri:
            ET.register_namespace(f"{prefix}_", uri)


def _container(element: ET.Element) -> ET.Element | None:
    kinds = {f"{{{RDF}}}{name}" for name in ("Bag", "Seq", "Alt")}
    return next((child for child in element if child.tag in kinds), None)


def _items(element: ET.Element) -> Iterable[str]:
    container = _container(element)
    if container is None:
        return []
    return [item.text or "" for item in container.findall(f"{{{RDF}}}li")]
