"""A call from its first attempt to its answer, without input or output.

Each conversation is a generator: it yields what to do, a :class:`Send` or a :class:`Pause`, is sent what came of it,
and returns the answer. The two clients differ only in how they do it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeVar

import httpx

from client.answers import Answer, Problem, Result, ServedModel, failed_result, read_answer, read_models
from client.errors import (
    RETRIED,
    ClientError,
    NotAGatewayError,
    ProblemError,
    RefusedError,
    UnreachableError,
    problem_error,
)
from client.patience import Patience, Trial
from client.requests import Batch, Parameters, Request, question

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """Send this, and give up after the time."""

    request: Request
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Do nothing for so long."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """What came back; the names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Outcome: TypeAlias = Reply | httpx.RequestError | None
Conversation: TypeAlias = Generator[Send | Pause, Outcome, T]

_PASSING = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError)
_OF_THE_PICTURE = frozenset(("undecodable_image", "too_many_pixels", "body_too_large", "too_many_images", "empty_body"))
"""Refusals that another request, with fewer or other pictures, may not meet."""


def ask(path: str, batch: Batch, parameters: Parameters, patience: Patience) -> Conversation[Answer]:
    """One answer for all pictures, each of which is there.

    Raises:
        ClientError: if no picture is answered.
    """
    pictures = [content for content in batch.contents if isinstance(content, bytes)]
    answer = yield from _ask(path, pictures, parameters, Trial(patience))
    return replace(answer, results=tuple(_with_sources(answer.results, batch)))


def ask_each(path: str, batch: Batch, parameters: Parameters, patience: Patience) -> Conversation[list[Result]]:
    """A result for each picture, errors too: where the gateway refuses a whole request, in smaller and smaller ones.

    Raises:
        ClientError: if it is not the pictures that are wrong.
    """
    trial = Trial(patience)
    results: dict[int, Result] = {}
    pictures: dict[int, bytes] = {}
    for place, content in enumerate(batch.contents, start=batch.first):
        if isinstance(content, Problem):
            results[place] = failed_result(str(place), content)
        else:
            pictures[place] = content
    groups = [list(pictures)] if pictures else []
    while groups:
        group = groups.pop()
        try:
            answer = yield from _ask(path, [pictures[place] for place in group], parameters, trial)
        except RefusedError as error:
            if error.code not in _OF_THE_PICTURE:
                raise
            if len(group) == 1:
                results[group[0]] = failed_result(str(group[0]), error.problem)
            else:
                half = len(group) // 2
                groups += [group[half:], group[:half]]
        else:
            for place, result in zip(group, answer.results, strict=True):
                results[place] = _moved(result, str(place))
    return _with_sources([results[place] for place in sorted(results)], batch)


def ask_models(patience: Patience) -> Conversation[list[ServedModel]]:
    reply = yield from _until_answered(Request("GET", "/models", []), Trial(patience))
    return _understood(reply, read_models)


def ask_ready(patience: Patience) -> Conversation[dict[str, Any]]:
    """What ``/readyz`` says, once it is ready."""
    reply = yield from _until_answered(Request("GET", "/readyz", []), Trial(patience))
    return _understood(reply, dict)


def _ask(path: str, pictures: list[bytes], parameters: Parameters, trial: Trial) -> Conversation[Answer]:
    """Pictures that failed for the moment alone are asked again, while there is time."""
    answer = yield from _ask_once(path, pictures, parameters, trial)
    results = list(answer.results)
    while waiting := [place for place, result in enumerate(results) if _failed_for_now(result)]:
        pause_s = trial.pause_s(None)
        if pause_s is None:
            break
        yield Pause(pause_s)
        try:
            later = yield from _ask_once(path, [pictures[place] for place in waiting], parameters, trial)
        except ProblemError as error:  # of these alone: the others have their answers
            for place in waiting:
                results[place] = failed_result(str(place), error.problem)
            break
        except ClientError:
            break
        for place, result in zip(waiting, later.results, strict=True):
            results[place] = _moved(result, str(place))
    return replace(answer, results=tuple(results))


def _ask_once(path: str, pictures: list[bytes], parameters: Parameters, trial: Trial) -> Conversation[Answer]:
    reply = yield from _until_answered(question(path, pictures, parameters), trial)
    answer = _understood(reply, read_answer)
    if len(answer.results) != len(pictures):
        raise NotAGatewayError(f"{len(answer.results)} results came for {len(pictures)} pictures")
    return answer


def _until_answered(request: Request, trial: Trial) -> Conversation[Reply]:
    while True:
        outcome = yield Send(request, trial.attempt_s())
        if isinstance(outcome, Reply):
            if outcome.status < 400:
                return outcome
            refusal = _refusal(outcome)
            pause_s = trial.pause_s(refusal.retry_after_s) if refusal.status in RETRIED else None
            error: ClientError = refusal
        elif isinstance(outcome, httpx.DecodingError):
            raise NotAGatewayError("what answers is no gateway of this kind: its answer cannot be read")
        else:
            assert outcome is not None  # noqa: S101 - only a pause has no outcome
            pause_s = trial.pause_s(None) if isinstance(outcome, _PASSING) else None
            error = UnreachableError(f"{_origin(outcome.request.url)}: {str(outcome) or type(outcome).__name__}")
        if pause_s is None:
            raise error from (outcome if isinstance(outcome, Exception) else None)
        yield Pause(pause_s)


def _refusal(reply: Reply) -> ProblemError:
    """The problem document; a proxy's page, which is none, by its status alone."""
    retry_after_s = _seconds(reply.headers.get("retry-after", ""))
    try:
        document = json.loads(reply.body)
        problem = Problem(reply.status, document["code"], document["detail"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if reply.status == 413:
            problem = Problem(413, "body_too_large", "a proxy before the gateway takes no body of this size")
        elif reply.status in RETRIED:
            problem = Problem(reply.status, "unavailable", f"status {reply.status}")
        else:
            raise NotAGatewayError(f"what answers is no gateway of this kind: status {reply.status}") from error
    return problem_error(problem, reply.headers.get("x-request-id"), retry_after_s)


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def _seconds(retry_after: str) -> float | None:
    """Of both forms that the header has: seconds, or a date."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _understood(reply: Reply, read: Callable[[Any], T]) -> T:
    try:
        return read(json.loads(reply.body))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotAGatewayError("what answers is no gateway of this kind: its answer cannot be read") from error


def _failed_for_now(result: Result) -> bool:
    return result.error is not None and result.error.status in RETRIED


def _with_sources(results: Iterable[Result], batch: Batch) -> list[Result]:
    return [replace(result, source=source) for result, source in zip(results, batch.sources, strict=True)]


def _moved(result: Result, identifier: str) -> Result:
    """The same at its place among all pictures."""
    return replace(result, id=identifier, document={**result.document, "id": identifier})
