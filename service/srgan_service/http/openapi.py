"""What /openapi.json says beyond what FastAPI finds out by itself."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from srgan_service.http.parameters import MASK_FIELD, Wish
from srgan_service.http.problems import ProblemDocument
from srgan_service.work.models import Models
from srgan_service.work.service import Service
from srgan_service.work.upscaling import MEDIA_TYPES

# Of any kind of picture, whatever it is: programs that are made from this document know only this one as bytes.
_BYTES = "application/octet-stream"
_BINARY = {"type": "string", "format": "binary"}
_USE = (
    "Send a picture to `/v1/upscale` and get it back larger, or to `/v1/jobs` if it takes long. Every error is a "
    "problem document (RFC 9457) with a stable `code`; 429 and 503 say in `Retry-After` when to try again."
)
_FILE = {"type": "string", "format": "binary", "contentMediaType": "image/png"}


# One event of a stream; before OpenAPI 3.2 the schema of a stream is that of each event.
EVENT = {
    "type": "object",
    "properties": {
        "event": {"const": "status"},
        "id": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobState"},
        },
    },
    "required": ["event", "id", "data"],
}


def version() -> str:
    """Return the version of the installed package."""
    try:
        return installed_version("srgan")
    except PackageNotFoundError:  # a checkout that is on the path, and not installed
        return "0"


def picture_body() -> dict[str, Any]:
    """Return the request body of one picture: raw, or in a form with the parameters beside it."""
    form = {
        "type": "object",
        "properties": {
            "image": {**_FILE, "description": "The picture; `file` is understood, too."},
            MASK_FIELD: {
                **_FILE,
                "description": "A mask of the picture's size: white stays true, black is sharp.",
            },
            **_parameters(),
        },
        "required": ["image"],
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form}, _BYTES: {"schema": dict(_BINARY)}}
    about = "A form, or the bytes of the picture alone, as `application/octet-stream` or as what they are."
    return {"requestBody": {"description": about, "required": True, "content": content}}


def jobs_body() -> dict[str, Any]:
    """Return the request body of a job: one picture as for `picture_body`, or several files in a form."""
    body = picture_body()
    form = body["requestBody"]["content"]["multipart/form-data"]["schema"]
    del form["properties"][MASK_FIELD]
    form["properties"]["image"] = {"type": "array", "items": dict(_FILE), "minItems": 1}
    return body


def picture_responses() -> dict[int | str, dict[str, Any]]:
    """Return the good answers of a picture."""
    headers = {
        "X-Model": {
            "description": "Which model made it; beyond ASCII, percent-encoded UTF-8.",
            "schema": {"type": "string"},
        },
        "X-Warnings": {
            "description": "What of the upload is not as it was: a list of strings (RFC 9651). Absent if all is.",
            "schema": {"type": "string"},
            "example": '"GIF holds no partial transparency, so edges became hard"',
        },
        "X-Invented-Levels": {
            "description": "Of a map: by how many grey levels the result is invented, root mean square.",
            "schema": {"type": "number"},
        },
        "Content-Disposition": {"schema": {"type": "string"}},
    }
    return {200: {"description": "The upscaled picture.", "content": binary(), "headers": headers}}


def binary(*further: str) -> dict[str, Any]:
    """Return the content of an answer that is a picture of any kind, or one of `further` media types."""
    return {media_type: {"schema": dict(_BINARY)} for media_type in (*MEDIA_TYPES.values(), *further, _BYTES)}


def finish(app: FastAPI) -> None:
    """Make `app` describe its problems: one schema, and none of FastAPI's own."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
                servers=[{"url": "/", "description": "Where this document is."}],
                version=app.version,
                summary=app.summary,
                description=_USE,
                routes=app.routes,
            )
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            schemas["Problem"] = ProblemDocument.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            service: Service = app.state.service
            document["security"] = []
            if service.keys:
                components["securitySchemes"] = {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                }
            for schema in schemas.values():
                for example in schema.get("examples", []):
                    _complete(example, schema, schemas)
            for operations in document["paths"].values():
                for operation in operations.values():
                    _finish_operation(operation, needs_key=bool(service.keys))
                    _name_models(operation, service.models)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _complete(example: dict[str, Any], schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Say null in an example again where it has to be said: FastAPI leaves it out."""
    for name in schema.get("required", []):
        value = example.setdefault(name, None)
        items = schema["properties"][name].get("items", {})
        for item in value if isinstance(value, list) and "$ref" in items else []:
            _complete(item, schemas[items["$ref"].rpartition("/")[2]], schemas)


def _finish_operation(operation: dict[str, Any], needs_key: bool) -> None:
    responses = operation["responses"]
    # FastAPI's own word for wrong parameters, where it is not one of our problems.
    wrong = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if wrong.get("$ref", "").endswith("HTTPValidationError"):
        del responses["422"]
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _never_null(parameter["schema"])
    if needs_key or operation["operationId"] in ("health", "ready"):
        responses.pop("403", None)  # see http/origins.py
    if needs_key and "401" in responses:
        operation["security"] = [{"key": []}, {"bearer": []}]


def _name_models(operation: dict[str, Any], models: Models) -> None:
    """Say which models there are, and of a balance only where there are two to balance."""
    names = [model.name for model in models.listed]
    parameters: list[dict[str, Any]] = operation.get("parameters", [])
    if models.balance is None:
        parameters[:] = [parameter for parameter in parameters if parameter["name"] != "balance"]
    for parameter in parameters:
        if parameter["name"] == "model":
            parameter["schema"] = {"type": "string", "enum": names}
    for body in operation.get("requestBody", {}).get("content", {}).values():
        properties = body["schema"].get("properties", {})
        if "model" in properties:
            properties["model"] = {
                "type": "string",
                "enum": names,
                "description": properties["model"]["description"],
            }
        if models.balance is None:
            properties.pop("balance", None)


def allowed(app: FastAPI, path: str) -> str:
    """Return the methods of an address, as the Allow header says them; "" if there is none."""
    methods: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            methods |= {method.upper() for method in operations} | ({"HEAD"} if "get" in operations else set())
    return ", ".join(sorted(methods))


def _parameters() -> dict[str, Any]:
    """Return the parameters as fields of a form, which are there or not, but never null."""
    return {name: _never_null(schema) for name, schema in Wish.model_json_schema()["properties"].items()}


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of something that is said in text or not at all."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    return {**choices[0], **{name: schema[name] for name in ("description", "examples") if name in schema}}
