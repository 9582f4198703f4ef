"""The files of a report: one HTML page that holds everything, and a zip of CSV tables and JSON beside it."""

import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from plotly.offline import get_plotlyjs

from mixqvit.errors import ReportError
from mixqvit.files.documents import finite, measurement
from mixqvit.report.findings import Findings
from mixqvit.report.sections import FLIP_ROWS, Section

if TYPE_CHECKING:
    from mixqvit.study.study import Study

__all__ = ["REPORT_VERSION", "Report", "bundle", "document_of", "page_of"]

REPORT_VERSION = 1
"""Version of `report.json`."""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2a33; background: #fff; margin: 0 auto; max-width: 1100px;
  padding: 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 3rem; border-bottom: 1px solid #cfd8dc; } h3 { margin-bottom: .3rem; }
nav ol { columns: 2 18rem; } code { background: #eef2f4; padding: 0 .2em; overflow-wrap: anywhere; }
.table { overflow-x: auto; max-height: 30rem; overflow-y: auto; } .figure { min-height: 20rem; }
table { border-collapse: collapse; font-size: .85rem; } th, td { padding: .15rem .6rem; text-align: left;
  border-bottom: 1px solid #e3e9ec; white-space: nowrap; } thead th { position: sticky; top: 0; background: #fff; }
p { overflow-wrap: anywhere; } @media print { .table { max-height: none; } section { break-inside: avoid; } }
"""

# Figures are drawn when they come near the screen, so that a page of thirty opens at once.
_SCRIPT = """
const draw = element => {
  const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
  Plotly.newPlot(element, figure.data, figure.layout, {responsive: true, displaylogo: false});
};
const elements = document.querySelectorAll(".figure");
const watcher = new IntersectionObserver(found => found.filter(one => one.isIntersecting).forEach(one => {
  watcher.unobserve(one.target); draw(one.target); }), {rootMargin: "600px"});
elements.forEach(element => watcher.observe(element));
window.addEventListener("beforeprint", () => elements.forEach(element => element.data || draw(element)));
"""


@dataclass(frozen=True)
class Report:
    """A study to hand on.

    Attributes:
        title: Name of the study.
        html: The page; it loads nothing.
        bundle: A zip with `report.json` and a CSV file for every table.
    """

    title: str
    html: str
    bundle: bytes

    def write(self, path: str | Path) -> tuple[Path, Path]:
        """Write the page, and the bundle beside it with `.zip` for its ending; returns both paths.

        Raises:
            ReportError: A file cannot be written; what was there before stays.
        """
        page = Path(path)
        beside = page.with_suffix(".zip")
        if beside == page:
            raise ReportError(f"{page} would be overwritten by the tables: name the page, e.g. report.html.")
        for target, content in ((page, self.html.encode()), (beside, self.bundle)):
            temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            try:
                temporary.write_bytes(content)
                temporary.replace(target)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                raise ReportError(f"The report cannot be written to {target}: {error.strerror or error}.") from error
        return page, beside


def page_of(title: str, parts: Sequence[Section]) -> str:
    """Return the page."""
    contents = "".join(
        f'<li><a href="#part{number}">{escape(part.title)}</a></li>' for number, part in enumerate(parts)
    )
    body, count = [], 0
    for number, part in enumerate(parts):
        body.append(f'<section id="part{number}"><h2>{escape(part.title)}</h2>')
        body += [f"<p>{_words(words)}</p>" for words in part.words]
        for figure in part.figures:
            height = figure.picture.layout.height or 450
            body.append(
                f"<h3>{escape(figure.title)}</h3>"
                + (f"<p>{_words(figure.words)}</p>" if figure.words else "")
                + f'<div class="figure" data-figure="figure{count}" style="height:{height}px" role="img" '
                f'aria-label="{escape(figure.title)}"></div>'
                f'<script type="application/json" id="figure{count}">{_figure_json(figure.picture)}</script>'
            )
            count += 1
        for name, frame in part.tables.items():
            shown = frame.head(FLIP_ROWS)
            more = f" ({len(shown)} of {len(frame)} rows; all in the tables beside)" if len(shown) < len(frame) else ""
            body.append(f"<h3>{escape(name)}{more}</h3><div class='table'>{_table(shown)}</div>")
        body.append("</section>")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}: Mix-QViT report</title>"
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>{escape(title)}</h1>"
        f"<p>Mix-QViT report of {date.today().isoformat()}: how few bits each layer can live on, and what it costs.</p>"
        f"<nav><ol>{contents}</ol></nav>{''.join(body)}<script>{_SCRIPT}</script></body></html>"
    )


def _words(markdown: str) -> str:
    """Return a sentence of Markdown as HTML: bold, code and line breaks are all that occur."""
    text = re.sub(r"\\([^\w\s])", r"\1", markdown)
    text = escape(text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"(?<!\*)\*([^*\n]+)\*(?!\*)", r"<em>\1</em>", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\n+", "<br>", text)


def _figure_json(picture: Any) -> str:
    layout = picture.layout
    if layout.template is None or not layout.template.to_plotly_json():
        picture = picture.__class__(picture)
        picture.update_layout(template="plotly_white")
    return picture.to_json().replace("<", "\\u003c")  # a name must not end the script


def _table(frame: pd.DataFrame) -> str:
    frame = frame.astype(object).where(frame.notna(), "")
    return frame.to_html(
        index=not isinstance(frame.index, pd.RangeIndex), border=0, na_rep="", float_format="{:.6g}".format
    )


def bundle(parts: Sequence[Section], document: Mapping[str, Any]) -> bytes:
    """Return the zip of `report.json` and all tables; the same study gives the same bytes."""
    content = io.BytesIO()
    names: set[str] = set()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("report.json"), json.dumps(finite(document), indent=2) + "\n")
        for part in parts:
            for name, frame in part.tables.items():
                stem = re.sub(r"[^\w.-]+", "_", name).strip("_").lower() or "table"
                file = stem if stem not in names else f"{stem}_{len(names)}"
                names.add(file)
                index = not isinstance(frame.index, pd.RangeIndex)
                archive.writestr(zipfile.ZipInfo(f"{file}.csv"), frame.to_csv(index=index), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def document_of(title: str, study: "Study", found: Findings, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `report.json`: everything that the page says, for programs."""
    return {
        "mixqvit_report": REPORT_VERSION,
        "study": title,
        "model": study.model.name,
        "settings": dict(settings),
        "versions": study.made_with,
        "fingerprints": {
            "model": study.graph.fingerprint,
            "calibration_images": study.calibration_images.fingerprint,
            "evaluation_images": study.evaluation_images.fingerprint,
        },
        "notes": [note.text for note in study.notes],
        "images": asdict(study.image_sets.sample),
        "layers": [asdict(layer) for layer in study.layers],
        "request": found.asked,
        "bits": {name: list(pair) for name, pair in found.bits.items()},
        "measured": {
            name: measurement(one) | {"cost": asdict(found.costs[name]) | {"size_bytes": found.costs[name].size_bytes}}
            for name, one in found.measured.items()
        },
        "importance": None if found.importance is None else found.importance.mean,
        "importance_refused": found.refused or None,
        "sensitivity": {name: {str(b): v for b, v in row.items()} for name, row in study.sensitivity().items()},
        "sensitivity_interval_95": study.sensitivity_intervals() or None,
        "frontier": [
            {"average_bits": point.average_bits, "bits": {n: list(p) for n, p in point.allocation.bits.items()}}
            for point in found.frontier
            if point.allocation is not None
        ],
    }
