"""A study as one self-contained HTML page. Defined in `david.report.page`."""

from david.report.page import NAME, Section, Shown, page, show, write

__all__ = ["NAME", "Section", "Shown", "page", "show", "write"]
