"""What the takeover APIs of other sidecars have in common: clients that are forgiven a lot, and always answered 200."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from fastside.master_link import MasterGone
from fastside.takeover.errors import TakeoverError

log = logging.getLogger("fastside")

MAX_BODY = 1 << 20
"""Bytes. Applications put their own properties into what they publish."""

_LONE_BACKSLASH = re.compile(r'\\(?!["\\/bfnrt]|u[0-9a-fA-F]{4})')

Body = TypeVar("Body", bound=msgspec.Struct)


def failures_as(answer: Callable[[str], dict[str, Any]]) -> Middleware:
    """A middleware that answers a refusal with status 200 and what `answer` makes of the reason.

    The reason is also logged: clients do not always show it.
    """

    @web.middleware
    async def refuse(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except (TakeoverError, MasterGone) as error:
            log.warning("%s is refused: %s", request.path, error)
            return web.json_response(answer(str(error)))

    return refuse


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """The body of a request. Raises TakeoverError if it makes no sense.

    Whatever its content type, it is JSON that may have control characters and lone backslashes in its strings, numbers
    as text, and fields that are not known here.
    """
    text = (await request.read()).decode(errors="replace")
    try:
        data = _parse(text)
    except ValueError as error:
        raise TakeoverError(400, f"the body is not JSON: {error}", "") from None
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise TakeoverError(400, f"the body is no good: {error}", "") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return json.loads(_LONE_BACKSLASH.sub(r"\\\\", text), strict=False)
