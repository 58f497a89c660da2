"""A parser for report pages, and the studies that the tests of pages write."""

import re
from html.parser import HTMLParser

from optuna import Study

from tests.helpers.handmade_studies import add, judge, new_study

BASE, BEST, OTHER = "0:6", "0:4, 2:6", "0:3, 1:3*0.5, 3:6"
HOSTILE = """</style></svg>'"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"""
UNSEEN = "\x00\x1b[2J\u202ecba\u2066\r\nnext"  # acts on who reads it without being seen
SHOWN = r"\x00\x1b[2J\u202ecba\u2066\r\nnext"
VOID = {"meta", "link", "br", "img"}
SHAPES = {"path", "line", "rect", "circle", "use", "image", "defs", "g", "clippath", "text"}


class Document(HTMLParser):
    """A page as a list of its elements and its text; tags that do not match are an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES, f"only SVG has elements that end themselves, not {tag}"
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(text)
            if re.fullmatch(r"h\d", self._open[-1]):
                self.headings[-1] = (self._open[-1], self.headings[-1][1] + text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        """The attributes of every element of a kind, and of a class."""
        return [
            attrs for kind, attrs in self.elements if kind == tag and name in [*(attrs.get("class") or "").split(), ""]
        ]


def small_study() -> Study:
    """Return a study with the base, a block, two blocks, a duplicate and two failures, and no held-out scores."""
    study = new_study(6)
    add(study, BASE, 2.0)
    add(study, BEST, 1.5)
    add(study, OTHER, 1.75)
    add(study, BEST, 1.5, duplicate_of=1)
    for _ in range(2):
        add(study, None, None, state="FAIL", error="the score is not a number")
    return study


def judged_study() -> Study:
    """Return the small study with held-out scores: the block is better, the other recipe is inconclusive."""
    study = small_study()
    judge(study, 0, [20.0, 21.0, 22.0], [10, 10, 10])
    judge(study, 1, [19.0, 19.8, 20.6], [10, 10, 10])
    judge(study, 2, [20.5, 20.8, 21.9], [10, 10, 10])
    return study


def only_base() -> Study:
    study = new_study(6)
    add(study, BASE, 2.0)
    return study
