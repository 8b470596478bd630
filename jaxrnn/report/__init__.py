"""Reports in Markdown and self-contained HTML."""

from jaxrnn.report.cells import CELLS_HEADER, cell_rows, cells_page
from jaxrnn.report.document import Report

__all__ = ["CELLS_HEADER", "Report", "cell_rows", "cells_page"]
