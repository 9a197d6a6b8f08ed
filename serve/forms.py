"""Multipart forms as FastAPI parses them, within limits, and refused in one sentence."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import HTTPException, Request, params
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import Field, TypeAdapter
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

NO_OBJECT = "the body is no JSON object; send one with the fields that /openapi.json describes"
_MAX_PARTS = 16
_MAX_FIELD_BYTES = 1024


class _FormParser(MultiPartParser):
    """Refuses a form that ends before its closing boundary, and a file without a filename.

    The libraries below take both: the first loses its last field, the second becomes a text.
    """

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], fields: dict[str, Any]) -> None:
        super().__init__(
            headers, stream, max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=_MAX_FIELD_BYTES
        )
        self.fields = fields
        self.is_complete = False

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is None and isinstance(self.fields.get(part.field_name), params.File):
            name = part.field_name
            found = f"the field '{name}' is text: its part has no filename"
            raise HTTPException(422, f"{found}; send it as a file, with curl: -F {name}=@FILE")

    def on_end(self) -> None:
        self.is_complete = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self.is_complete:
            await form.close()
            raise MultiPartException("it ends before its closing boundary")
        return form


class FormRequest(Request):
    """A request whose form has few and small parts, each declared by its route's parameters and sent once."""

    def __init__(self, scope: Scope, receive: Receive, fields: dict[str, Any]) -> None:
        super().__init__(scope, receive)
        self.fields = fields

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """The form; FastAPI calls this, with limits of its own that are larger.

        Raises:
            HTTPException: 400 for a broken form, 415 for none, 422 for other parts than the route's parameters.
        """
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "multipart/form-data":
            found = f"the body is {media_type or 'of no stated type'}"
            raise HTTPException(415, f"{found}; {self._files()} as multipart/form-data")
        try:
            async with aclosing(self.stream()) as stream:
                form = await _FormParser(self.headers, stream, self.fields).parse()
        except MultiPartException as error:
            reason = error.message.rstrip(".")
            raise HTTPException(
                400, f"the body is not a whole multipart form ({reason}); send it again"
            ) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the body ended early; send it again") from error
        try:
            self._check(form)
        except HTTPException:
            await form.close()
            raise
        return form

    def _check(self, form: FormData) -> None:
        items = form.multi_items()
        names = [name for name, _ in items]
        for name, value in items:
            if name not in self.fields:
                raise HTTPException(
                    422, f"the field '{name[:40]}' is not known; {self._files()}{self._texts()}"
                )
            if names.count(name) > 1:
                raise HTTPException(
                    422, f"the field '{name}' was sent {names.count(name)} times; send it once"
                )
            if not isinstance(self.fields[name], params.File) and not isinstance(value, str):
                raise HTTPException(422, f"{name} is a file; send it as text")
            if value == "":
                raise HTTPException(422, f"{name} is ''; expected {_describe(self.fields[name])}")

    def _files(self) -> str:
        names = [name for name, info in self.fields.items() if isinstance(info, params.File)]
        return f"send some of the files {', '.join(names)}"

    def _texts(self) -> str:
        names = [name for name, info in self.fields.items() if not isinstance(info, params.File)]
        return f", and {', '.join(names)} if you wish" if names else ""


def form_fields(dependant: Dependant) -> dict[str, Any]:
    """Name -> declaration of a route's form fields, followed by those of its dependencies."""
    fields = {field.alias: field.field_info for field in dependant.body_params}
    for dependency in dependant.dependencies:
        fields |= form_fields(dependency)
    return fields


def explain(request: Request, error: RequestValidationError) -> str:
    """The first invalid field of a request, in one sentence."""
    first = error.errors()[0]
    names = [str(part) for part in first["loc"][1:]]  # ("body", name, ...)
    if request.headers.get("content-type", "").startswith("application/json") or not names:
        return _explain_json(first["type"], names, first)
    name, found = names[0], str(first["input"])
    route = request.scope.get("route")
    fields = form_fields(route.dependant) if isinstance(route, APIRoute) else {}
    expected = _describe(fields[name]) if name in fields else first["msg"]
    return f"{name} is '{found[:40]}'; expected {expected}"


def _explain_json(kind: str, names: list[str], error: Any) -> str:
    """The first invalid field of a JSON body; a message names no value, which may be long."""
    if kind in ("json_invalid", "model_attributes_type") or not names:
        return NO_OBJECT
    if kind in ("missing", "extra_forbidden"):
        found = "is missing" if kind == "missing" else "is not known"
        return f"the field '{names[0][:40]}' {found}; send the fields that /openapi.json describes"
    return f"the field '{names[0][:40]}': {error['msg'][:1].lower()}{error['msg'][1:]}"


def _describe(field: Any) -> str:
    """The values that a form field takes, from its JSON schema."""
    # Annotated takes no fewer than two arguments.
    schema = TypeAdapter(Annotated[(field.annotation, Field(), *field.metadata)]).json_schema()
    schema |= field.json_schema_extra or {}
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "minimum" in schema and "maximum" in schema:
        return f"a number from {schema['minimum']:g} to {schema['maximum']:g}"
    return str(field.description or schema.get("type", "another value"))
