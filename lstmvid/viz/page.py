"""A page of HTML that holds all of its pictures, so that it is one file and opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lstmvid.viz.files import write

_TYPES = {".png": "image/png", ".gif": "image/gif"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1e1e1e; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: #666; padding-top: .4rem; }
th, td { padding: .15rem .8rem; border-bottom: 1px solid #eee; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figure img { max-width: 100%; } figcaption { color: #666; }
nav a { margin-right: 1rem; }
"""


class Page:
    """A page under construction: headings, sentences, tables and pictures, in the order in which they are added.

    Args:
        title: its name.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.pictures: dict[str, bytes] = {}
        self._body: list[str] = []
        self._headings: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._headings.append(text)
        self._body.append(f'<h2 id="part-{len(self._headings)}">{escape(text)}</h2>')

    def sentence(self, text: str) -> None:
        """Add a paragraph."""
        self._body.append(f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> None:
        """Add a table; each row has as many cells as the header."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        below = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._body.append(f"<table>{below}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")

    def picture(self, name: str, content: bytes, caption: str) -> None:
        """Add a picture.

        Args:
            name: of its file, for `save_pictures`: ``*.png`` or ``*.gif``, once a page.
            content: of its file.
            caption: what it shows.

        Raises:
            ValueError: the name is another kind's, or taken.
        """
        kind = _TYPES.get(Path(name).suffix)
        if kind is None or name in self.pictures:
            raise ValueError(f"name is {name}, expected one that ends in .png or .gif and is not on the page yet")
        self.pictures[name] = content
        data = base64.b64encode(content).decode()
        self._body.append(
            f'<figure><img alt="{escape(caption)}" src="data:{kind};base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        """The page so far."""
        links = "".join(f'<a href="#part-{n}">{escape(text)}</a>' for n, text in enumerate(self._headings, start=1))
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body>\n<h1>{escape(self.title)}</h1>\n<nav>{links}</nav>\n"
            + "\n".join(self._body)
            + "\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> None:
        """Write the page, whole or not at all; its folder is made if need be."""
        write(Path(path), self.html().encode())

    def save_pictures(self, folder: str | Path) -> list[Path]:
        """Write every picture to a file of its own in a folder."""
        paths = [Path(folder, name) for name in self.pictures]
        for path, content in zip(paths, self.pictures.values(), strict=True):
            write(path, content)
        return paths
