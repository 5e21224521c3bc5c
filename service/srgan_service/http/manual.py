"""The page at /docs: what /openapi.json says, for people; no script, nothing from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

STYLE = resources.files("srgan_service.http").joinpath("manual.css").read_text("utf-8")
_environment = Environment(
    loader=PackageLoader("srgan_service.http", ""),
    autoescape=True,
    undefined=StrictUndefined,  # a name that the template misspells fails instead of showing nothing
    trim_blocks=True,
    lstrip_blocks=True,
)

_CURL = {
    "upscale": 'curl -o large.png --data-binary @photo.png "{url}/v1/upscale?scale=4"\n'
    'curl -o large.webp -F image=@photo.jpg -F scale=2 -F format=webp "{url}/v1/upscale"',
    "create_job": 'curl -i -F image=@one.jpg -F image=@two.png "{url}/v1/jobs"',
    "get_job": 'curl "{url}/v1/jobs/ID"',
    "watch_job": 'curl -N "{url}/v1/jobs/ID/events"',
    "get_result": 'curl -OJ "{url}/v1/jobs/ID/result"',
    "delete_job": 'curl -X DELETE "{url}/v1/jobs/ID"',
    "list_limits": 'curl "{url}/v1/limits"',
    "list_models": 'curl "{url}/v1/models"',
}


@dataclass(frozen=True)
class _Parameter:
    """A row of an operation's parameters. `place`: query, path or header. `values`: what it may be."""

    name: str
    place: str
    values: str
    meaning: str


@dataclass(frozen=True)
class _Operation:
    """A section of the page. `example`: a command line, or "". `responses`: (status, meaning)."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    example: str
    parameters: list[_Parameter]
    body_types: list[str]
    responses: list[tuple[str, str]]


def page(document: dict[str, Any], url: str) -> str:
    """Return an OpenAPI document as HTML; `url`: where the service is, for the examples."""
    operations = [
        _operation(method.upper(), path, operation, url)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = {"description": "", **document["info"]}
    return _environment.get_template("manual.html.j2").render(info=info, operations=operations)


def _operation(method: str, path: str, operation: dict[str, Any], url: str) -> _Operation:
    return _Operation(
        id=operation["operationId"],
        method=method,
        path=path,
        summary=operation["summary"],
        description=operation.get("description", ""),
        example=_CURL.get(operation["operationId"], "").format(url=url),
        parameters=[_parameter(parameter) for parameter in operation.get("parameters", [])],
        body_types=list(operation.get("requestBody", {}).get("content", {})),
        responses=[(status, response["description"]) for status, response in operation["responses"].items()],
    )


def _parameter(parameter: dict[str, Any]) -> _Parameter:
    schema = parameter["schema"]
    choices = next(choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null")
    values = " | ".join(map(str, choices["enum"])) if "enum" in choices else choices.get("type", "")
    limits = [str(choices[name]) for name in ("minimum", "maximum") if name in choices]
    if len(limits) == 2:
        values += f" {' to '.join(limits)}"
    meaning = parameter.get("description", schema.get("description", ""))
    return _Parameter(parameter["name"], parameter["in"], values, meaning)
