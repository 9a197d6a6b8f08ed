"""The reference of the endpoint, from its OpenAPI description."""

from __future__ import annotations

from typing import Any

from serve.api import make_api
from serve.schemas import NOTICE_HEADER, Settings
from serve.watch import ModelWatch

_INTRODUCTION = f"""# HTTP

Generated from the endpoint's OpenAPI description, which a running endpoint serves at `/openapi.json`.
[Serve](../guides/serve.md) shows requests. Every answer carries the header `{NOTICE_HEADER}`: research use only.
"""

_REFUSAL = {"$ref": "#/components/schemas/Refusal"}


def render_http() -> str:
    """The page of the routes and of what they take and answer."""
    description = describe_endpoint()
    components = description["components"]["schemas"]
    routes = [
        _render_route(method, path, operation, components)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        _render_schema(name, schema)
        for name, schema in components.items()
        if schema.get("properties") and not name.startswith("Body_")
    ]
    return "\n".join([_INTRODUCTION, *routes, "## Answers\n", *schemas])


def describe_endpoint() -> dict[str, Any]:
    """The OpenAPI description of an endpoint with both models."""
    settings = Settings()
    watch: ModelWatch[Any] = ModelWatch(settings.model, _load_nothing, poll_s=settings.poll_s)
    return make_api(settings, dict.fromkeys(settings.uris, watch)).openapi()


def list_form_fields(content: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Name -> schema of the fields of a form, from its content and all schemas of the description."""
    fields: dict[str, Any] = components[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    return fields


def _load_nothing(*_: object) -> None:
    raise AssertionError("the description needs no model")


def _render_route(method: str, path: str, operation: dict[str, Any], components: dict[str, Any]) -> str:
    lines = [f"## `{method.upper()} {path}`", "", operation.get("description", operation["summary"]), ""]
    body = operation.get("requestBody", {}).get("content", {})
    for media_type, content in body.items():
        lines += [f"Body: `{media_type}`", "", "| field | type | default | meaning |", "|---|---|---|---|"]
        for name, schema in list_form_fields(content, components).items():
            default = f"`{schema['default']}`" if "default" in schema else ""
            cells = (f"`{name}`", _type_of(schema), default, schema.get("description", ""))
            lines.append(_row(cells))
        lines.append("")
    lines += ["| status | answer |", "|---|---|"]
    answers: dict[str, list[str]] = {}
    for status, answer in operation["responses"].items():
        # Every refusal is one sentence; its description is the status' own name.
        is_refusal = answer.get("content", {}).get("application/json", {}).get("schema") == _REFUSAL
        text = _answer_of({**answer, "description": "why not, in one sentence"} if is_refusal else answer)
        answers.setdefault(text, []).append(str(status))
    lines += [_row((", ".join(statuses), text)) for text, statuses in answers.items()]
    return "\n".join([*lines, ""])


def _answer_of(answer: dict[str, Any]) -> str:
    content = answer.get("content", {})
    kinds = []
    for media_type, media in content.items():
        reference = media.get("schema", {}).get("$ref", "")
        name = reference.rpartition("/")[2]
        kinds.append(f"`{media_type}`" + (f" [{name}](#{name.lower()})" if name else ""))
    return f"{answer['description']}" + (f" ({', '.join(kinds)})" if kinds else "")


def _render_schema(name: str, schema: dict[str, Any]) -> str:
    lines = [
        f"### {name}",
        "",
        schema.get("description", ""),
        "",
        "| field | type | meaning |",
        "|---|---|---|",
    ]
    for field, value in schema["properties"].items():
        lines.append(_row((f"`{field}`", _type_of(value), value.get("description", ""))))
    return "\n".join([*lines, ""])


def _type_of(schema: dict[str, Any]) -> str:
    """The type in words, with its values or range."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type_of(option) for option in schema[key])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    kind = str(schema.get("type", "any"))
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        inner = ", ".join(dict.fromkeys(map(_type_of, items)))
        return f"list of {inner}" if "prefixItems" not in schema else f"{len(items)} x {inner}"
    if kind == "object" and "additionalProperties" in schema:
        values = schema["additionalProperties"]
        return f"object of {_type_of(values)}" if isinstance(values, dict) else "object"
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"{kind}, {low:g} to {high:g}" if low is not None and high is not None else kind


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
