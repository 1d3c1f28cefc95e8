"""From a request's body to a list of pictures: raw bytes, multipart, or JSON. What leaves is bytes, not pixels."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from app.errors import DeadlineError, RequestError, ServiceError
from app.parameters import LONGEST_SHOWN
from app.settings import Settings

_MAX_JSON_ITEMS = 100_000
"""Most commas and brackets in a JSON body: each may become an object of some hundred bytes."""
_SLICE_BYTES = 2**18
"""Of a multipart body, which is read without a pause; of the worst kind it takes 50 ms."""
_LONGEST_ID = 4096
_LONGEST_FIELD = 2**16
"""Bytes of a form's part that is no file: as many as a query may have."""
_BOUNDARY = re.compile(rb'[^\x00-\x1f"\\\x7f-\xff]{1,200}')
_JSON_FORM = """{"images": [{"b64": "…"}]}, and optionally "model", "version" and "parameters": {"top_k": 1}"""
_LINE_ENDS = str.maketrans("", "", " \t\r\n")
_CURL_TYPE = "application/x-www-form-urlencoded"
_RAW_TYPES = {"", "application/octet-stream", _CURL_TYPE}


@dataclass(frozen=True)
class ImageInput:
    """One picture as the client sent it: its bytes, or why there are none."""

    id: str
    data: bytes | ServiceError


@dataclass(frozen=True)
class Body:
    """The pictures, and what forms and JSON carry beside: parameters, and URLs to fetch by the picture's index."""

    images: list[ImageInput]
    parameters: dict[str, Any] = field(default_factory=dict)
    urls: dict[int, str] = field(default_factory=dict)
    is_of_curl: bool = False
    """Bare bytes, with the type that curl gives them unless it is told otherwise."""


async def read_body(request: Request, settings: Settings, take: Callable[[int], None], deadline: float) -> Body:
    """Read and take apart the body, in any of its three forms. ``take`` is told of bytes as they arrive.

    Raises:
        RequestError: 400 malformed, 413 too large or too many, 415 not a picture's media type.
        DeadlineError: if the client takes longer than ``body_timeout_ms``, or until ``deadline``, to send it.
        OverloadError: from ``take``.
    """
    media_type = _media_type(request)
    is_multipart = media_type == "multipart/form-data"
    is_json = media_type == "application/json"
    if not (is_multipart or is_json or media_type in _RAW_TYPES or media_type.startswith("image/")):
        raise RequestError(
            415,
            "unsupported_media_type",
            f"{media_type!r} is no picture: send its bytes as image/*, as multipart/form-data, or JSON",
        )
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        shown = coding[:LONGEST_SHOWN]
        raise RequestError(415, "unsupported_media_type", f"Content-Encoding {shown!r}: send the body as it is")
    chunks = await _read_chunks(request, settings, take, deadline)
    if not chunks:
        raise RequestError(400, "empty_body", "the body is empty: send a picture")
    if is_multipart:
        return await _from_multipart(request, chunks, settings)
    data = b"".join(chunks)
    if is_json or (media_type in _RAW_TYPES and data.startswith(b"{")):  # as no picture begins
        return _from_json(data, settings)
    return Body([ImageInput("0", data)], is_of_curl=media_type == _CURL_TYPE)


def explained(error: ServiceError, body: Body) -> ServiceError:
    """The error, with what has probably made the picture unreadable: curl's -d, which looks so like --data-binary."""
    if error.code != "undecodable_image" or not body.is_of_curl:
        return error
    hint = "with curl, use --data-binary @FILE: -d leaves out line ends"
    return RequestError(error.status, error.code, f"{error.detail}; {hint}")


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_count(images: int, settings: Settings) -> None:
    if images > settings.max_images:
        raise RequestError(
            413, "too_many_images", f"{images} pictures in one request; at most {settings.max_images} are accepted"
        )


async def _read_chunks(
    request: Request, settings: Settings, take: Callable[[int], None], deadline: float
) -> list[bytes]:
    too_large = RequestError(
        413, "body_too_large", f"the body is too large; at most {settings.max_body_bytes:,} bytes are accepted"
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > settings.max_body_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        body_deadline = asyncio.get_running_loop().time() + settings.body_timeout_ms / 1000
        async with asyncio.timeout_at(min(body_deadline, deadline)):
            async for chunk in request.stream():
                size += len(chunk)
                if size > settings.max_body_bytes:
                    raise too_large
                take(len(chunk))
                if chunk:
                    chunks.append(chunk)
    except TimeoutError:
        raise DeadlineError from None
    except ClientDisconnect as error:
        raise RequestError(400, "client_left", "the client left before its body was whole") from error
    return chunks


async def _from_multipart(request: Request, chunks: list[bytes], settings: Settings) -> Body:
    """``chunks`` is used up, and each part given back once it is read, so that nothing is there twice for long."""

    async def stream() -> AsyncIterator[bytes]:
        chunks.reverse()
        while chunks:
            chunk = chunks.pop()
            for start in range(0, len(chunk), _SLICE_BYTES):
                yield chunk[start : start + _SLICE_BYTES]
                await asyncio.sleep(0)  # others have their turn

    parser = MultiPartParser(
        _multipart_headers(request),
        stream(),  # type: ignore[arg-type]
        max_files=4 * settings.max_images,
        max_fields=100,
        max_part_size=_LONGEST_FIELD,
    )
    parser.spool_max_size = settings.max_body_bytes  # the body is in memory already; no detour over the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = getattr(error, "message", str(error))
        if message.startswith("Too many files"):
            _check_count(4 * settings.max_images + 1, settings)
        if message.startswith("Part exceeded"):
            message = f"a field has more than {_LONGEST_FIELD:,} bytes; a picture is a file: with curl, -F image=@FILE"
        raise RequestError(400, "malformed_request", f"the multipart body cannot be read: {message}") from error
    try:
        parts = [part for name, part in form.multi_items() if name == "image"]
        if not parts:
            others = ", ".join(sorted({repr(name[:40]) for name, _ in form.multi_items()})[:3])
            instead = f", but {others}: with curl, -F image=@FILE" if others else ""
            raise RequestError(400, "missing_image", f"the multipart body has no part named 'image'{instead}")
        if any(not isinstance(part, UploadFile) for part in parts):
            raise RequestError(400, "missing_image", "the part named 'image' must be a file: with curl, -F image=@FILE")
        _check_count(len(parts), settings)
        contents = [await _read_and_close(part) for part in parts if isinstance(part, UploadFile)]
        parameters = _fields(form)
    finally:
        await form.close()
    return Body([ImageInput(str(index), content) for index, content in enumerate(contents)], parameters)


async def _read_and_close(part: UploadFile) -> bytes:
    content = await part.read()
    await part.close()
    return content


def _fields(form: FormData) -> dict[str, Any]:
    """What a form holds beside pictures: parameters, as in a query."""
    parameters: dict[str, Any] = {}
    for name in form:
        if name == "image":
            continue
        values = form.getlist(name)
        if any(isinstance(value, UploadFile) for value in values):
            raise _malformed(f"the part {name[:40]!r} is a file: pictures are parts named 'image'")
        parameters[name] = values if len(values) > 1 else values[0]
    return parameters


def _multipart_headers(request: Request) -> Headers:
    """The boundary alone: a charset would choose the codec for fields, and some take hours for a few megabytes."""
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed("the multipart body cannot be read: its media type has no boundary, or an odd one")
    return Headers({"content-type": f'multipart/form-data; boundary="{boundary.decode()}"'})


def _from_json(data: bytes, settings: Settings) -> Body:
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_JSON_ITEMS:
        raise RequestError(413, "too_many_images", f"the JSON body has more than {_MAX_JSON_ITEMS:,} items")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _malformed(f"the JSON body must be an object: {_JSON_FORM}")
    if unknown := sorted(set(document) - {"images", "parameters", "model", "version"}):
        raise _malformed(f"unknown {unknown[0][:LONGEST_SHOWN]!r} in the JSON body, which is {_JSON_FORM}")
    images = document.get("images")
    if not isinstance(images, list) or not images:
        raise RequestError(400, "missing_image", "the JSON body has no 'images': a list of objects with 'b64'")
    _check_count(len(images), settings)
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _malformed("'parameters' must be an object")
    chosen = {key: document[key] for key in ("model", "version") if document.get(key) is not None}
    inputs = [_from_entry(index, entry) for index, entry in enumerate(images)]
    urls = {index: entry["url"] for index, entry in enumerate(images) if "url" in entry}
    return Body(inputs, {**parameters, **chosen}, urls)


def _from_entry(index: int, entry: object) -> ImageInput:
    if not isinstance(entry, dict) or set(entry) - {"id", "b64", "url"} or ("b64" in entry) == ("url" in entry):
        raise _malformed(f"images[{index}] must be an object with either 'b64' or 'url', and optionally 'id'")
    identifier = entry.get("id", str(index))
    if not isinstance(identifier, str | int):
        raise _malformed(f"images[{index}].id must be a string")
    if len(str(identifier)) > _LONGEST_ID:
        raise _malformed(f"images[{index}].id has more than {_LONGEST_ID} characters")
    if "url" in entry:
        if not isinstance(entry["url"], str):
            raise _malformed(f"images[{index}].url must be a string")
        return ImageInput(
            str(identifier), RequestError(422, "url_not_allowed", "fetching pictures by URL is off here: send 'b64'")
        )
    return ImageInput(str(identifier), _decoded(index, entry["b64"]))


def _decoded(index: int, text: object) -> bytes | ServiceError:
    if isinstance(text, str):
        with suppress(ValueError):
            return base64.b64decode(text, validate=True)
        with suppress(ValueError):  # the command base64 writes lines
            return base64.b64decode(text.translate(_LINE_ENDS), validate=True)
    hint = ": leave out what comes before the comma" if isinstance(text, str) and text.startswith("data:") else ""
    return RequestError(422, "undecodable_image", f"images[{index}].b64 is not base64 text{hint}")


def _malformed(detail: str) -> RequestError:
    return RequestError(400, "malformed_request", detail)
