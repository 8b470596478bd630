"""Reports in Markdown and self-contained HTML, and the tables that the command line prints."""

from jaxrnn.report.cells import CELLS_HEADER, cell_rows, cells_page
from jaxrnn.report.document import Report, plain
from jaxrnn.report.tasks import TASKS_HEADER, task_rows

__all__ = [
    "CELLS_HEADER",
    "TASKS_HEADER",
    "Report",
    "cell_rows",
    "cells_page",
    "plain",
    "task_rows",
]
