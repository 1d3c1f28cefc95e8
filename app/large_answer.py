"""An answer that is sent piece by piece, and counts among what is held until its client has taken it."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.admission import Admission

PIECE_BYTES = 2**16
"""What a connection may have waiting for its client anyhow."""


class LargeAnswer(Response):
    """JSON of more than :data:`PIECE_BYTES`: embeddings and heat maps of a form's pictures are megabytes.

    A client that does not read leaves it where it is; many such clients are refused as those who send too much are.

    Raises:
        OverloadError: when it is sent, if it does not fit beside what is held.
    """

    media_type = "application/json"

    def __init__(self, content: bytes, admission: Admission, headers: dict[str, str]) -> None:
        super().__init__(content, headers=headers)
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.hold_bytes() as take:
            take(len(self.body))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), PIECE_BYTES):
                end = start + PIECE_BYTES
                piece = self.body[start:end]
                await send({"type": "http.response.body", "body": piece, "more_body": end < len(self.body)})
