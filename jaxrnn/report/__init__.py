"""Reports in Markdown and self-contained HTML."""

from jaxrnn.report.document import Report

__all__ = ["Report"]
