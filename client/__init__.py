"""A client of the gateway for Python programs: ask about pictures, get typed answers.

::

    from client import Client

    with Client("http://127.0.0.1:8080") as gateway:
        answer = gateway.classify(Path("digit.png"), top_k=3)
        print(answer.results[0].predictions[0].label)
        for result in gateway.tag_each(Path("photos").glob("*.jpg")):
            print(result.id, [tag.label for tag in result.tags])

A package of its own, beside the gateway and not in it: it needs httpx alone, so a program that asks loads no web
server, numpy or torch, and the folder can be taken along as it is. :class:`AsyncClient` is the same for asyncio.
"""

from client.answers import Answer, HeatMap, Model, Prediction, Problem, Result, ServedModel, Tag
from client.async_client import AsyncClient
from client.errors import (
    ClientError,
    NotAGatewayError,
    ProblemError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from client.patience import Patience
from client.requests import ClassifyParameters, Picture, TagParameters
from client.sync_client import Client

__all__ = [
    "Answer",
    "AsyncClient",
    "ClassifyParameters",
    "Client",
    "ClientError",
    "HeatMap",
    "Model",
    "NotAGatewayError",
    "Patience",
    "Picture",
    "Prediction",
    "Problem",
    "ProblemError",
    "RefusedError",
    "Result",
    "ServedModel",
    "Tag",
    "TagParameters",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
]
