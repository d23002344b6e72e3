"""Self-contained HTML pages: the shell with its style sheet, tables, cards and legends.

No script, no network, no font files: one file that opens anywhere, follows the reader's light or dark
setting, and prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from planner import __version__

# Categorical colours in two shades: readable on white and on near-black, told apart by people who confuse
# red and green (after Okabe and Ito 2008).
LIGHT = (
    "#0b6fb8",
    "#e08a00",
    "#0b8f6a",
    "#c9481b",
    "#7a5195",
    "#4fa8dc",
    "#b3578f",
    "#8a8d1f",
    "#5b6b7b",
    "#b9c1c9",
)
DARK = (
    "#3f95d8",
    "#d9972b",
    "#2fa882",
    "#d9653a",
    "#9a74bd",
    "#77bde6",
    "#c878a8",
    "#a9ad3c",
    "#84929f",
    "#56606a",
)
SLOTS = len(LIGHT)

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1c2126;--soft:#5c6670;--line:#e3e5e8;
--band:#0b6fb81a;--diag:#9aa3ad;--good:#0b8f6a;--bad:#c9381b;LIGHT}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e8eaed;--soft:#9aa4ae;
--line:#31373d;--band:#5ab0f02b;--diag:#6b757f;--good:#3fc79a;--bad:#f0784a;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:27px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:19px;margin:40px 0 6px}h3{font-size:15px;margin:0 0 6px}
h3 small{display:block;font-size:12px;overflow-wrap:anywhere;line-height:1.35}
p{margin:6px 0 12px;max-width:78ch}p.lead,.soft{color:var(--soft)}
a{color:var(--c0)}code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.92em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:20px 0}
.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:24px;line-height:1.25;font-weight:650;letter-spacing:-.01em}
.card span{color:var(--soft);font-size:13px}.card.bad b{color:var(--bad)}.card.good b{color:var(--good)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(265px,1fr));gap:14px;margin:12px 0}
.grid .panel{display:flex;flex-direction:column}.grid svg{margin-top:auto}
.wide svg{max-width:660px}
.stack{display:grid;gap:14px;margin:12px 0}
.wide{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(430px,100%),1fr));gap:14px;margin:12px 0}
.panel h3 small{font-weight:400;color:var(--soft)}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--soft);font-size:10.5px;font-family:inherit}svg text.axis{font-size:11.5px}
svg text.strong{fill:var(--ink);font-size:12px}svg text.on{fill:#fff;font-size:10.5px}
line.grid{stroke:var(--line);stroke-width:1}
line.diag{stroke:var(--diag);stroke-width:1.2}line.mid{stroke:var(--ink);stroke-width:2.2}
line.limit{stroke:var(--bad);stroke-width:1.6;stroke-dasharray:5 3}
line.cap{stroke:var(--ink);stroke-width:1.4}line.whisk{stroke:var(--c0);stroke-width:3}
polygon.band,rect.band{fill:var(--band)}
circle.fitted{fill:none;stroke:var(--c1);stroke-width:1.3;stroke-opacity:.75}
circle.judged{fill:var(--c0);fill-opacity:.8;stroke:var(--card);stroke-width:.6}
circle:hover,rect:hover{stroke:var(--ink);stroke-width:1.6}
SERIES
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0;color:var(--soft);font-size:13px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.legend i.mid{height:3px;vertical-align:3px;background:var(--ink)}
.legend i.band{width:18px;background:var(--band);border:1px solid var(--line)}
.legend i.dot{border-radius:50%}.legend i.ring{border-radius:50%;border:2px solid var(--c1);background:none}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,th.text,td.text{text-align:left}td.text{white-space:normal}td.text:last-child{min-width:16em}
th{color:var(--soft);font-weight:600}tr:last-child td{border-bottom:0}
details{margin:10px 0}summary{cursor:pointer;color:var(--soft)}
ul{margin:6px 0 12px;padding-left:20px}li{margin:3px 0;max-width:88ch}
footer{margin-top:48px;color:var(--soft);font-size:13px;border-top:1px solid var(--line);padding-top:14px}
@media print{body{background:#fff}.panel,.card,.scroll{break-inside:avoid}}
"""


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return "".join(f"--c{i}:{value};" for i, value in enumerate(values))

    series = "".join(f".s{i}{{fill:var(--c{i})}}i.s{i}{{background:var(--c{i})}}" for i in range(SLOTS))
    style = STYLE.replace("LIGHT", colours(LIGHT)).replace("DARK", colours(DARK)).replace("SERIES", series)
    return style.strip()


def document(title: str, body: Iterable[str]) -> str:
    """A whole page. ``body`` is HTML; the title is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n<body><main>"
        + "\n".join(body)
        + f"\n<footer>planner {escape(__version__)}</footer></main></body></html>\n"
    )


def heading(title: str, lead: str = "") -> str:
    """The page's title and one line below it."""
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'


def section(title: str, lead: str = "") -> str:
    """A section's title and its explanation."""
    return f"<h2>{escape(title)}</h2>" + (f'<p class="soft">{escape(lead)}</p>' if lead else "")


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Figures that stand out: (value, what it is, "" or "good" or "bad")."""
    found = [
        f'<div class="card {tone}"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
        for value, words, tone in items
    ]
    return f'<div class="cards">{"".join(found)}</div>'


def panel(title: str, note: str, picture: str) -> str:
    """A titled picture."""
    small = f"<small>{escape(note)}</small>" if note else ""
    head = f"<h3>{escape(title)}{small}</h3>" if title else ""
    return f'<div class="panel">{head}{picture}</div>'


def panels(found: Iterable[str], css: str = "grid") -> str:
    return f'<div class="{css}">{"".join(found)}</div>'


def legend(items: Iterable[tuple[str, str]]) -> str:
    """(class of the swatch, words)."""
    found = [f'<span><i class="{css}"></i>{escape(words)}</span>' for css, words in items]
    return f'<div class="legend">{"".join(found)}</div>'


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """A table; the first column and ``text_columns`` are text, the others numbers."""

    def css(index: int) -> str:
        return ' class="text"' if index in text_columns else ""

    head = "".join(f"<th{css(i)}>{escape(name)}</th>" for i, name in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(f"<td{css(i)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def listed(lines: Iterable[str]) -> str:
    """A bulleted list of texts."""
    return "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in lines) + "</ul>"


def folded(words: str, inner: str) -> str:
    """Something long behind a line that opens it."""
    return f"<details><summary>{escape(words)}</summary>{inner}</details>"
