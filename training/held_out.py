"""Which pictures a run held out to judge it, so that they are found again later: of a data set they enter as digests.

A picture is known by its name below the data's place and by its content: a folder may move, be given as another path
or have grown since, and neither a training picture nor one that merely has the same name is taken for one held out.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from training.layouts import HUB, open_pictures
from training.pictures import Pictures
from tresnet.checkpoint import HeldOut
from tresnet.errors import UserError

logger = logging.getLogger(__name__)


def remember(where: str, pictures: Pictures) -> HeldOut:
    """For a checkpoint; ``where`` as it was given."""
    known = {_name(where, name): _digest(pictures.read(index)) for index, name in enumerate(pictures.names)}
    return HeldOut(data=where, pictures=known)


def find_again(held_out: HeldOut | None, where: str | None) -> Pictures:
    """What a checkpoint is to be measured on: of ``where``, else of the data that the run was given.

    Those that the run held out, if they are there; else the split ``test``, else ``val``, else all.

    Raises:
        UserError: if the data cannot be read, or was the run's own and holds none of them any more.
    """
    place = where or (held_out.data if held_out is not None else "")
    try:
        splits = open_pictures(place)
    except UserError as error:
        if where is not None:
            raise
        raise UserError(f"{error} (the data that the run was given: say with --data where it is now)") from error
    if held_out is not None and held_out.pictures:
        for part in splits.values():  # they were drawn from one of them
            if found := [index for index in range(len(part)) if _is_of(held_out.pictures, place, part, index)]:
                missing = len(held_out.pictures) - len(found)
                gone = f"; {missing} more are changed or no longer there" if missing else ""
                logger.info("measured on the %d of %d pictures in %s that the run held out%s",
                            len(found), len(part), place, gone)  # fmt: skip
                return part.select(found)
        if where is None:
            raise UserError(f"{place} no longer holds the pictures that the run held out: give --data others")
    split = next(name for name in ("test", "val", "all", *splits) if name in splits)
    pictures = splits[split]
    if split in ("test", "val"):
        logger.info("measured on the %d pictures in %s of the split %s", len(pictures), place, split)
    else:
        logger.info("measured on all %d pictures in %s: if the run was trained on some of them, the figures flatter it",
                    len(pictures), place)  # fmt: skip
    return pictures


def _is_of(known: dict[str, str], where: str, pictures: Pictures, index: int) -> bool:
    expected = known.get(_name(where, pictures.names[index]))
    return expected is not None and expected == _digest(pictures.read(index))


def _name(where: str, name: str) -> str:
    """A digest, because names of files may be nobody else's business; of the path below the data's own."""
    if not where.startswith(HUB):
        root = Path(where) if Path(where).is_dir() else Path(where).parent
        path = Path(name)
        name = str(path.relative_to(root)) if path.is_relative_to(root) else name
    return _digest(name.encode(errors="surrogateescape"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
