"""A report that is written once and read two ways: as Markdown beside its figures, and as one HTML file.

The HTML file holds its figures inside itself, so it can be sent or opened anywhere. It runs nothing: HTML in
the text is shown as text, what comes from outside is escaped by `plain`, and a Content-Security-Policy
forbids the page to run or load anything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.files import replace_file, writing

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
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


_MARKS = re.compile(r"([\\`*_\[\]<>&|~$#!])")
"""What Markdown or HTML may read as more than a character."""


def plain(text: str) -> str:
    """Return Markdown that shows a text as it is, in one line: for names and words that come from outside."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


class Report:
    """A document in the making.

    Titles and captions are plain text. Headings, paragraphs and table cells are Markdown: names in them that
    come from outside go through `plain`.

    Args:
      title: its heading.
    """

    @checked
    def __init__(self, title: str):
        self._title = title
        self._blocks = [f"# {plain(title)}"]
        self._figures: list[str] = []

    @checked
    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section, or a part of one at level 3."""
        checks.within("level", level, 2, 6)
        self._blocks.append(f"{'#' * level} {text}")

    @checked
    def paragraph(self, text: str) -> None:
        """Add a paragraph of Markdown."""
        self._blocks.append(text)

    def verbatim(self, text: str) -> None:
        """Add lines that are shown as they are, each character as wide as the others."""
        longest = max(map(len, re.findall("`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        self._blocks.append(f"{fence}\n{text}\n{fence}")

    @checked
    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; a bar or a line's end inside a cell does not end the cell."""
        lines = [header, ["---"] * len(header), *rows]
        cells = [[_cell(text) for text in line] for line in lines]
        self._blocks.append("\n".join("| " + " | ".join(line) + " |" for line in cells))

    @checked
    def figure(self, path: str, caption: str) -> None:
        """Add a figure by its path relative to the report, with a caption below it."""
        self._figures.append(path)
        self._blocks.append(f"![{plain(caption)}]({path})")
        self._blocks.append(f"*{plain(caption)}*")

    @property
    def text(self) -> str:
        """The document as Markdown."""
        return "\n\n".join(self._blocks) + "\n"

    @checked
    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write ``report.md`` and ``report.html`` into a folder and return their paths.

        Raises:
          InputError: the folder cannot be written.
        """
        text = self.text
        body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
        markdown, html = folder / "report.md", folder / "report.html"
        with writing("out", folder, "a folder that can be written"):
            page = _PAGE.format(
                policy=_POLICY,
                title=escape(self._title),
                body=self._with_figures_inside(body, folder),
            )
            for path, content in ((markdown, text), (html, page)):
                # A name of a file may hold bytes that are no text.
                replace_file(path, content.encode("utf-8", "backslashreplace"))
        return markdown, html

    def _with_figures_inside(self, body: str, folder: Path) -> str:
        """Put the report's own figures into the page; no other file is read, whatever the text says."""
        for path in self._figures:
            data = base64.b64encode((folder / path).read_bytes()).decode("ascii")
            body = body.replace(f'src="{path}"', f'src="data:image/png;base64,{data}"')
        return body


def _cell(text: str) -> str:
    """Return a table cell in one line, with its bars escaped where they are not yet."""
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(str(text).splitlines()))
