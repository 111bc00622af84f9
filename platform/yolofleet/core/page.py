"""The frame and style of every HTML page: one file, without script, in light and dark, on a phone as on a screen."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#667;--line:#d9dde3;--card:#f5f7f9;--bar:#3b7dd8;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e7eaee;--soft:#9aa4b2;--line:#333a44;--card:#1d2229;--page:#14171b}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);
max-width:1180px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:18px;margin:36px 0 10px}
.soft{color:var(--soft)}dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:12px}
.card{background:var(--card);border-radius:10px;padding:12px 18px;min-width:96px}
.card b{display:block;font-size:26px;font-variant-numeric:tabular-nums}.card span{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:20px}
.chart{width:100%;max-width:640px}
.legend{margin:4px 0 0 62px;display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px}
.legend i{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:middle}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
.bar{display:inline-block;height:9px;background:var(--bar);border-radius:3px;margin-right:8px}
.images{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:16px}
figure{margin:0}img{width:100%;height:auto;border-radius:6px}figcaption{color:var(--soft);font-size:13px}
"""


def render_page(title: str, parts: Iterable[str], more_style: str = "") -> str:
    """Return an HTML document that needs no other file and no network: a heading, the time, and the parts."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}{more_style}</style></head><body>"
        f"<h1>{escape(title)}</h1><p class='soft'>{datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>"
        f"{''.join(parts)}</body></html>\n"
    )


def image_tag(jpeg: bytes, size: tuple[int, int], alt: str = "") -> str:
    """Return an image as a tag with the bytes of its JPEG in it; ``size`` is (width, height) in pixels."""
    return (
        f"<img src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}' width='{size[0]}' height='{size[1]}' "
        f"loading='lazy' alt='{escape(alt)}'>"
    )
