"""The card that goes with a version: the run's, the user's own, or a short one for weights from elsewhere.

A section on the export itself is always added, because an export may change what the scores were measured with.
"""

from __future__ import annotations

from collections.abc import Iterator

import tresnet
from tresnet.card import network_section, preprocessing_section
from tresnet.checkpoint import Checkpoint
from tresnet.contract import MAX_CARD_CHARACTERS
from tresnet.errors import UserError
from tresnet.picture import Preprocessing
from tresnet.terms import Precision


def version_card(
    checkpoint: Checkpoint, own: str | None, labels: list[str], how: Preprocessing, precision: Precision
) -> str:
    """The card of a version that is exported from ``checkpoint`` with these labels and settings.

    Raises:
        UserError: if it is longer than a model's configuration should hold, or ``own`` is empty.
    """
    if own is not None and not own.strip():
        raise UserError("the model card of your own is empty: leave --card out for the run's")
    text = own or checkpoint.card or _short_card(checkpoint, labels, how)
    lines = _export(checkpoint, labels, how, precision, has_old_labels=text == checkpoint.card)
    card = f"{text.rstrip()}\n\n## Export\n\n" + "".join(f"- {line}\n" for line in lines)
    if len(card) > MAX_CARD_CHARACTERS:
        raise UserError(f"the model card has {len(card):,} characters; at most {MAX_CARD_CHARACTERS:,} travel along")
    return card


def _short_card(checkpoint: Checkpoint, labels: list[str], how: Preprocessing) -> str:
    facts = checkpoint.facts
    run = f" of a run of the recipe `{facts.recipe}`" if facts.recipe else ""
    sections = (
        f"# Model card: {checkpoint.path.name}\n\nFrom the file alone{run}; it does not tell how it was trained.\n",
        network_section(facts.model_copy(update={"labels": labels})),
        "## Scores\n\nNot measured here.\n",
        preprocessing_section(how),
        "## Limits\n\nNothing was tested here but that the exported program answers as the network does.\n",
    )
    return "\n".join(sections)


def _export(
    checkpoint: Checkpoint, labels: list[str], how: Preprocessing, precision: Precision, *, has_old_labels: bool
) -> Iterator[str]:
    """The section's lines; ``has_old_labels`` is whether the text above them names the checkpoint's labels."""
    facts = checkpoint.facts
    yield f"Source: `{checkpoint.path.name}`, SHA-256 `{checkpoint.sha256}`"
    yield (
        f"Exported by tresnet-serving {tresnet.__version__} in {precision}, and compared with the network in float32; "
        "the labelled pictures were not scored again"
    )
    if how != facts.preprocessing:
        changed = [name for name, value in how if getattr(facts.preprocessing, name) != value]
        words = ", ".join(f"{name.replace('_', ' ')} {getattr(how, name)}" for name in changed)
        yield f"Serves with other preprocessing than the network was trained for, which was not measured: {words}"
    if labels != facts.labels:
        yield "Labels were renamed at export" + (": those above are the checkpoint's" if has_old_labels else "")
