"""The HTML page of `qsm report`: it opens from disk and needs nothing beside it."""

from __future__ import annotations

import base64
import csv
import errno
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from qsm.base.errors import UserError
from qsm.base.files import replace_file
from qsm.base.text import count
from qsm.report.figures import Rows

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 72rem;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; max-width: 42rem; } img, video { width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; background:
  linear-gradient(to right, #fff 2rem, #fff0) left / 4rem 100%, linear-gradient(to left, #fff 2rem, #fff0) right /
  4rem 100%, linear-gradient(to right, #0006, #0000) left / .8rem 100%, linear-gradient(to left, #0006, #0000) right /
  .8rem 100%; background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .words td, .words th, td.words, th.words { text-align: left; }
td.wide { white-space: normal; min-width: 16rem; }
.differs { background: #fff2cc; } td.missing { background: #f6dede; }
.note { background: #f4f4f4; border-left: 4px solid #0072B2; padding: .1rem 1rem; margin: .6rem 0; }
details li { overflow-wrap: anywhere; } code { overflow-wrap: anywhere; }
@media print { a { color: inherit; } figure { break-inside: avoid; } }
"""
# The four backgrounds of a table: a shadow at each edge, which stays there, and over it a white cover that scrolls with
# the table. The shadow is seen where there is more of the table beyond that edge.


class Page:
    """Collects the page and writes what is beside it.

    Args:
      out: the folder; made with those above it.

    Raises:
      UserError: it cannot be made, or is a file.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._parts: list[str] = []
        try:
            for name in ("figures", "data"):
                (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(out, error) from error

    def add(self, text: str) -> None:
        """Puts HTML at the end of the page."""
        self._parts.append(text)

    def folder(self, name: str) -> Path:
        """A folder beside the page."""
        path = self._out / name
        path.mkdir(exist_ok=True)
        return path

    def table(self, name: str, rows: Rows) -> str:
        """Writes `rows` as data/NAME.csv, NaN as nothing; a link that works without that file too."""
        text = io.StringIO()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})
        data = text.getvalue().encode()
        replace_file(self._out / "data" / f"{name}.csv", data)
        inline = base64.b64encode(data).decode()
        return f'<a download="{name}.csv" href="data:text/csv;base64,{inline}">{name}.csv</a>'

    def figure(self, name: str, drawn: tuple[Figure, Rows], caption: str, sources: Sequence[str] = ()) -> str:
        """Writes figures/NAME.png and .svg and data/NAME.csv; the figure for the page.

        Args:
          sources: lines that can be unfolded below the caption.
        """
        figure, rows = drawn
        images = {}
        for form in ("png", "svg"):
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
            images[form] = file.getvalue()
            replace_file(self._out / "figures" / f"{name}.{form}", images[form])
        source = base64.b64encode(images["svg"]).decode()
        more = unfolded("Sources", sources) if sources else ""
        return (
            f'<figure><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{source}">'
            f"<figcaption>{html.escape(caption)} {self.table(name, rows)}{more}</figcaption></figure>"
        )

    def write(self, title: str, head: str) -> Path:
        """Writes the page itself, last.

        Args:
          title: as text.
          head: HTML between the title and what was added.
        """
        top = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>qsm: {html.escape(title)}</title><style>{STYLE}</style></head>"
            f"<body><h1>{html.escape(title)}</h1>{head}"
        )
        file = self._out / "index.html"
        replace_file(file, (top + "\n".join(self._parts) + "</body></html>\n").encode())
        return file


def explain(out: Path, error: OSError) -> UserError:
    """One line for a folder of the page that cannot be made or written."""
    # os.path answers False where Path would raise, as for a name that is too long.
    blocking = next((part for part in (out, *out.parents) if os.path.isfile(part)), None)
    if blocking is not None:
        which = "which is a file" if blocking == out else f"but {blocking} is a file"
        return UserError(f"--out is '{out}', {which}; name a folder for the page")
    mend = "choose a folder that you may write to with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "free some space or choose another disk with --out"
    return UserError(f"the report cannot be written to '{out}' ({error.strerror or error}); {mend}")


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[bool] = (), kind: str = ""
) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
      marks: which rows differ where they should not.
      kind: `words` for columns that are read and not compared.
    """
    # A column without a number is read as well; the first is always.
    reads = [
        kind != "words" and place > 0 and all(not row[place][:1].isdigit() for row in rows)
        for place in range(len(head))
    ]
    kinds = ["words" if is_read else "" for is_read in reads]
    top = "".join(
        f"<th{_classes(kind)}>{html.escape(text)}</th>" for text, kind in zip(head, kinds, strict=True)
    )
    lines = []
    for i, row in enumerate(rows):
        mark = _classes("differs" if i < len(marks) and marks[i] else "")
        lines.append(f"<tr{mark}>" + "".join(map(_shown, row, kinds)) + "</tr>")
    # It can be scrolled with the keyboard only where it can have the focus.
    return f'<div class="{f"table {kind}".strip()}" tabindex="0"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


MISSING = "missing"
"""Begins a cell of a table that has no number."""


def _shown(text: str, kind: str) -> str:
    shape = "missing" if text.startswith(MISSING) else "wide" if len(text) > 40 else ""
    return f"<td{_classes(kind, shape)}>{html.escape(text)}</td>"


def _classes(*names: str) -> str:
    """The attribute for those of `names` that are not empty."""
    given = " ".join(name for name in names if name)
    return f' class="{given}"' if given else ""


def items(lines: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def unfolded(summary: str, lines: Sequence[str]) -> str:
    """A list that is shown when `summary` is clicked."""
    return f"<details><summary>{html.escape(summary)}</summary>{items(lines)}</details>"


def note(text: str, lines: Sequence[str] = (), summary: str = "Which") -> str:
    """A box that catches the eye, with `lines` that can be unfolded."""
    more = unfolded(summary, lines) if lines else ""
    return f'<div class="note"><p>{html.escape(text)}</p>{more}</div>'


def described(facts: Mapping[tuple[str, str], int]) -> str:
    """A list of (kind, value), each with a number of starts."""
    lines = []
    for (kind, value), number in facts.items():
        starts = count(number, "start")
        lines.append(f"<li><b>{html.escape(kind)}</b>: <code>{html.escape(value)}</code> ({starts})</li>")
    return "<ul>" + "".join(lines) + "</ul>"
