"""The Hugging Face hub: a name of one of timm's models enters, its weights' file leaves, fetched or from the cache."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from tresnet.errors import UserError

logger = logging.getLogger(__name__)

_REACH_S = 5.0


def fetch(name: str) -> tuple[Path, int | None]:
    """The weights' file of one of timm's models on the Hugging Face hub, and the picture size it was trained for.

    Raises:
        UserError: if it can neither be fetched nor is here from an earlier time.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"hf://{name}: fetching needs the package huggingface_hub") from error
    huggingface_hub.logging.set_verbosity_error()  # its retries; what came of them is said below
    endpoint = huggingface_hub.constants.ENDPOINT
    logger.info("fetching hf://%s from %s, unless it is here already", name, endpoint)
    try:
        # The package would try for half a minute to reach a hub that cannot be.
        is_away = not _is_reached(endpoint)
        weights, facts = (
            Path(huggingface_hub.hf_hub_download(name, file, local_files_only=is_away))
            for file in ("model.safetensors", "config.json")
        )
        config = json.loads(facts.read_text(encoding="utf-8"))
        return weights, int(config["pretrained_cfg"]["input_size"][-1])
    except Exception as error:  # every fault of the network, the hub and the name
        raise UserError(
            f"hf://{name}: could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            "without a network, bring the .safetensors file and give its path"
        ) from error


def _is_reached(endpoint: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(endpoint, timeout=_REACH_S)
    except Exception:  # of whichever library it asks with
        return False
    return True
