"""A report that is written once and read two ways: as Markdown beside its figures, and as one HTML file.

The HTML file holds its figures inside itself, so it can be sent or opened anywhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; }}
body {{ max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ margin-top: 2.5rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.92rem; }}
th, td {{ border-bottom: 1px solid #ddd; padding: 0.35rem 0.7rem; text-align: left; vertical-align: top; }}
th {{ border-bottom: 2px solid #888; }}
img {{ max-width: 100%; }}
code, pre {{ background: #f5f5f5; font-size: 0.9em; }}
pre {{ padding: 0.7rem; overflow-x: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


class Report:
    """A document in the making.

    Args:
      title: its heading.
    """

    def __init__(self, title: str):
        self._title = title
        self._blocks = [f"# {title}"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._blocks.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of Markdown."""
        self._blocks.append(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; a bar inside a cell is escaped."""
        lines = [header, ["---"] * len(header), *rows]
        cells = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
        self._blocks.append("\n".join("| " + " | ".join(line) + " |" for line in cells))

    def figure(self, path: str, caption: str) -> None:
        """Add a figure by its path relative to the report, with a caption below it."""
        self._blocks.append(f"![{caption}]({path})")
        self._blocks.append(f"*{caption}*")

    @property
    def text(self) -> str:
        """The document as Markdown."""
        return "\n\n".join(self._blocks) + "\n"

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``report.md`` and ``report.html`` into a folder and return their paths."""
        text = self.text
        body = MarkdownIt("commonmark").enable("table").render(text)
        page = _PAGE.format(title=escape(self._title), body=_with_figures_inside(body, folder))
        markdown, html = folder / "report.md", folder / "report.html"
        markdown.write_text(text, encoding="utf-8")
        html.write_text(page, encoding="utf-8")
        return markdown, html


def _with_figures_inside(body: str, folder: Path) -> str:
    def embed(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode("ascii")
        return f'src="data:image/png;base64,{data}"'

    return re.sub(r'src="([^":]+\.png)"', embed, body)
