"""How a version proves itself before it serves, and again while it does: by its labels and its golden picture."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.decoder import Decoder
from app.errors import DeadlineError, TritonAnswerError
from app.triton import Prediction, TritonClient
from app.turns import in_turn
from tresnet.contract import SCORE_TOLERANCE, ModelContract, labels_digest

_GOLDEN_TIMEOUT_S = 60.0
"""Longer than a request may wait: where many do, the picture waits with them, and that says nothing of the version."""
_TURNS = 3
"""Of asking for the golden picture, while the answers are errors."""


@dataclass(frozen=True)
class Proof:
    """Along the whole path of a request: the gateway's decoder, Triton, the model."""

    triton: TritonClient
    decoder: Decoder

    async def labels(self, contract: ModelContract) -> list[str]:
        """The version's labels.

        Raises:
            ServiceError: if Triton does not give them, or not those that the model was exported with.
        """
        labels = await in_turn(lambda: self.triton.labels(contract))
        if labels_digest(labels) != contract.labels_sha256:
            raise TritonAnswerError("its labels are not those it was exported with")
        return labels

    async def golden_picture(self, contract: ModelContract) -> None:
        """Have the golden picture answered as it was at export.

        Raises:
            ServiceError: if it is not, or not in time.
        """
        golden = contract.facts.golden
        prepared = await self.decoder(base64.b64decode(golden.png_base64), contract.preprocessing)
        prediction = await self._prediction(contract, prepared.pixels)
        distance = max(abs(float(prediction.scores[label]) - score) for label, score in golden.scores.items())
        if distance > SCORE_TOLERANCE[contract.facts.precision]:
            raise TritonAnswerError(f"its golden picture's scores are {distance:.3f} off")

    async def _prediction(self, contract: ModelContract, pixels: npt.NDArray[np.uint8]) -> Prediction:
        """One Triton's answer. After an error another is asked; an answer stands, as requests would get it, too."""

        async def ask() -> list[Prediction | TritonAnswerError]:
            return await self.triton.infer(contract, [pixels], _GOLDEN_TIMEOUT_S, embedding=True)

        for left in reversed(range(_TURNS)):
            try:
                [prediction] = await in_turn(ask)
                break
            except DeadlineError as error:
                late = f"its golden picture was not answered within {_GOLDEN_TIMEOUT_S:.0f} s"
                raise TritonAnswerError(late) from error
            except TritonAnswerError:
                if not left:
                    raise
        if isinstance(prediction, TritonAnswerError):
            raise prediction
        return prediction
