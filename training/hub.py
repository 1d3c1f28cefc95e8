"""Data sets of the Hugging Face hub, where there is a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from training.pictures import SPLITS, Pictures
from tresnet.errors import UserError

logger = logging.getLogger(__name__)


def read_hub(name: str) -> dict[str, Pictures]:
    """The splits of the hub's ``OWNER/NAME``.

    Raises:
        UserError: if it cannot be fetched, or has no pictures or no class labels.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf://{name}: the hub's data sets need: pip install -e '.[data]' in the checkout") from error
    logger.info("fetching hf://%s, unless it is here already", name)
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # every fault of the network, the hub and the name
        raise UserError(
            f"hf://{name}: could not be fetched from the Hugging Face hub ({type(error).__name__}); "
            "without a network, bring the data as a folder"
        ) from error
    return {SPLITS.get(str(split).lower(), str(split)): _hub_split(name, part) for split, part in splits.items()}


def _hub_split(name: str, part: Any) -> Pictures:
    import datasets

    features = part.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = {
        column: inner
        for column, feature in features.items()
        if isinstance(inner := getattr(feature, "feature", feature), datasets.ClassLabel)
    }
    if not images or not classes:
        raise UserError(
            f"hf://{name}: needs a column of pictures and one of class labels; it has {', '.join(features)}"
        )
    column, label = next(iter(classes.items()))
    targets = [value if isinstance(value, list) else [value] for value in part[column]]
    # How the hub marks what it has no label for, such as the test pictures of a contest.
    known = [row for row, target in enumerate(targets) if all(index is not None and index >= 0 for index in target)]
    if unknown := len(targets) - len(known):
        logger.info("hf://%s: %d of %d pictures left out for want of a label", name, unknown, len(targets))
    encoded = part.cast_column(images[0], datasets.Image(decode=False))

    def read(index: int) -> bytes:
        value = encoded[index][images[0]]
        data: bytes = value["bytes"] or Path(value["path"]).read_bytes()
        return data

    names = [f"{name} {number}" for number in range(len(part))]
    return Pictures(list(label.names), names, targets, read).select(known)
