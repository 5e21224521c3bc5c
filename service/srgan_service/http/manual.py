"""The page at /docs: what /openapi.json says, for people; no script, nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-top: 1px solid #8886; padding-top: 1rem; }
code, pre { font: 0.9em/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.75rem; border: 1px solid #8886; border-radius: 0.4rem; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #8883; }
"""

_CURL = {
    "upscale": 'curl -o large.png --data-binary @photo.png "{url}/v1/upscale?scale=4"\n'
    'curl -o large.webp -F image=@photo.jpg -F scale=2 -F format=webp "{url}/v1/upscale"',
    "create_job": 'curl -i -F image=@one.jpg -F image=@two.png "{url}/v1/jobs"',
    "get_job": 'curl "{url}/v1/jobs/ID"',
    "watch_job": 'curl -N "{url}/v1/jobs/ID/events"',
    "get_result": 'curl -OJ "{url}/v1/jobs/ID/result"',
    "delete_job": 'curl -X DELETE "{url}/v1/jobs/ID"',
    "list_models": 'curl "{url}/v1/models"',
}


def page(document: dict[str, Any], url: str) -> str:
    """Return an OpenAPI document as HTML; `url`: where the service is, for the examples."""
    info = document["info"]
    operations = [
        _operation(method.upper(), path, operation, url)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}: HTTP interface</title>"
        '<link rel="stylesheet" href="/docs/style.css"></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{_text(info.get('description', ''))}</p>"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>' + "".join(operations) + "</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any], url: str) -> str:
    parts = [f"<h2 id={json.dumps(operation['operationId'])}><code>{method} {escape(path)}</code></h2>"]
    parts.append(
        f"<p><strong>{escape(operation['summary'])}.</strong> {_text(operation.get('description', ''))}</p>"
    )
    if example := _CURL.get(operation["operationId"]):
        parts.append(f"<pre>{escape(example.format(url=url))}</pre>")
    if rows := [_parameter(parameter) for parameter in operation.get("parameters", [])]:
        parts.append(_table(("Parameter", "In", "Values", "Meaning"), rows))
    if body := operation.get("requestBody"):
        parts.append("<p>Body: " + ", ".join(f"<code>{escape(kind)}</code>" for kind in body["content"]) + "</p>")
    parts.append(_table(("Status", "Meaning"), [_response(*item) for item in operation["responses"].items()]))
    return "".join(parts)


def _parameter(parameter: dict[str, Any]) -> tuple[str, ...]:
    schema = parameter["schema"]
    choices = next(one for one in schema.get("anyOf", [schema]) if one.get("type") != "null")
    said = " | ".join(map(str, choices["enum"])) if "enum" in choices else choices.get("type", "")
    limits = [str(choices[name]) for name in ("minimum", "maximum") if name in choices]
    values = escape(said) + (f" {escape(' to '.join(limits))}" if len(limits) == 2 else "")
    name = f"<code>{escape(parameter['name'])}</code>"
    return name, parameter["in"], values, _text(parameter.get("description", schema.get("description", "")))


def _response(status: str, response: dict[str, Any]) -> tuple[str, ...]:
    return escape(status), _text(response["description"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    heading = "".join(f"<th scope=col>{name}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table>"


def _text(text: str) -> str:
    """Return prose with `code` in it as HTML."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
