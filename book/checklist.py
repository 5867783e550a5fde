"""Write the checklist of notebook 07 as a PDF of one page, to print and take home.

``python book/checklist.py checklist.pdf``; the book offers the same file.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import nbformat
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "07_trust.ipynb"
A4_IN = (8.27, 11.69)
LINE = 0.017  # of the page's height


def read_checklist() -> list[list[str]]:
    """Rows of the table in the section "A checklist": before you, ask, and do; without markup."""
    prose = (c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells)
    section = re.search(r"^## [\d. ]*A checklist\n(.*?)^## ", "\n".join(prose), re.M | re.S)[1]
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", section, re.M)[1:]
    return [[re.sub(r"\*\*|`", "", text) for text in row] for row in rows]


def draw_page(rows: list[list[str]]) -> Figure:
    """One page of A4: a box to tick for each row, with lines to write on."""
    page, y = Figure(figsize=A4_IN), 0.93
    page.text(0.1, y, "Before you believe a denoised particle", size=18, weight="bold")
    page.text(0.1, y - 0.03, "cryonb, chapter 07; numbers are its sections", size=10, color="0.3")
    y -= 0.08
    for before, ask, do in rows:
        page.text(0.1, y, "☐", size=20, va="center", family="DejaVu Sans")
        lines = textwrap.wrap(f"{ask[0].upper()}{ask[1:]} → {do}", 72)
        page.text(0.15, y, f"Before you {before}:", size=12, weight="bold", va="center")
        page.text(0.15, y - LINE, "\n".join(lines), size=11, va="top", linespacing=1.4)
        y -= LINE * (len(lines) + 4)
    page.text(0.1, y, "What I will do differently:", size=12, weight="bold")
    for k in (1, 2, 3):
        height = [y - 0.035 * k] * 2
        page.add_artist(Line2D([0.1, 0.9], height, color="0.6", lw=0.8))
    return page


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("checklist: name the file to write, such as checklist.pdf")
    draw_page(read_checklist()).savefig(sys.argv[1])


if __name__ == "__main__":
    main()
