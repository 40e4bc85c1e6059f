"""What the gateway serves besides the API: the front page, the API's documentation, health and metrics.

Everything comes from this process: the documentation's assets are those of the wheel `swagger-ui-bundle-v2`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import orjson
import prometheus_client
from swagger_ui_bundle import swagger_ui_path

from gateway.exchange import Answer
from gateway.health import SERVING, Readiness

UNLIMITED = frozenset(("/healthz", "/readyz", "/metrics"))
"""Paths of those who look after this process: without rate limits."""

Page = Callable[[str], Awaitable[Answer]]
"""Takes the request's `Host` header ("" without); gives the answer to GET."""

ASSETS = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:]{2,45}\](:[0-9]{1,5})?")
NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# The one exception to "nothing inline": Swagger UI writes style attributes. Its scripts are files of ours.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
    f"; {NOTHING_ELSE}"
)
STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
SWAGGER_UI = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>feedmesh API</title>
<link rel="icon" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
  tryItOutEnabled: true, displayRequestDuration: true});
"""


def pages(openapi: bytes, readiness: Readiness, host: str, *, local: bool = True) -> Mapping[str, Page]:
    """Every page by its path. `host` is the gateway's own host:port, for a client that sends no usable `Host`.

    `local` is for a gateway that only this machine can reach: metrics are nothing for strangers.
    """
    found: dict[str, Page] = {
        "/": front_page(host),
        "/healthz": fixed(b'{"alive":true}', "application/json"),
        "/readyz": ready(readiness),
        "/openapi.json": fixed(openapi, "application/json"),
        "/docs": fixed(SWAGGER_UI.encode(), "text/html; charset=utf-8", DOCS_POLICY),
        "/docs/start.js": fixed(START.encode(), "text/javascript; charset=utf-8"),
    }
    if local:
        found["/metrics"] = metrics
    return found | {f"/docs/{name}": asset(name) for name in ASSETS}


def answer(body: bytes, content_type: str, policy: str = "", *, status: int = 200, cache_s: int = 0) -> Answer:
    """A page's answer; `policy` is what it may load, "" for nothing; `cache_s` is how long a browser may keep it."""
    headers = [
        (b"content-type", content_type.encode()),
        (b"cache-control", b"max-age=%d" % cache_s if cache_s else b"no-store"),
    ]
    if policy:
        headers.append((b"content-security-policy", policy.encode()))
    return Answer(status, body, headers)


def fixed(body: bytes, content_type: str, policy: str = "") -> Page:
    """A page that is always the same."""
    same = replace(answer(body, content_type, policy), is_fixed=True)

    async def page(_host: str) -> Answer:
        return same

    return page


def asset(name: str) -> Page:
    """A file of Swagger UI, read at its first use."""

    @cache
    def load() -> Answer:
        return replace(answer((swagger_ui_path / name).read_bytes(), ASSETS[name], cache_s=3600), is_fixed=True)

    async def page(_host: str) -> Answer:
        return load()

    return page


def front_page(own_host: str) -> Page:
    """The page at `/`: what this is and where to go, with commands that work where it was asked for."""
    template = (Path(__file__).parent / "web" / "index.html").read_text()
    styles = [hashlib.sha256(style.encode()).digest() for style in STYLE.findall(template)]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in styles)
    policy = f"default-src 'none'; style-src {hashes}; {NOTHING_ELSE}"

    async def page(host: str) -> Answer:
        shown = host if HOST.fullmatch(host) else own_host
        return answer(template.replace("{{host}}", html.escape(shown)).encode(), "text/html; charset=utf-8", policy)

    return page


def ready(readiness: Readiness) -> Page:
    """200 when every part serves that has routes, else 503; with each part's state. Feeds do without the others."""

    async def page(_host: str) -> Answer:
        parts = await readiness()
        is_ready = all(parts[name] == SERVING for name in readiness.needed)
        body = orjson.dumps({"ready": is_ready, "parts": parts})
        return answer(body, "application/json", status=200 if is_ready else 503)

    return page


async def metrics(_host: str) -> Answer:
    """This process's metrics in Prometheus's text format."""
    return answer(prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST)
