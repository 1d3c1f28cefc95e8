"""What the published weights expect of their callers, by the kind of weights: preprocessing and label names.

The files themselves say nothing of either. Sources: the validation code and tickets of the authors' repositories
TResNet, ImageNet21K, ASL and ML_Decoder, and timm's configurations. None of them subtracts a mean.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from importlib.resources import files

from tresnet.picture import Preprocessing
from tresnet.terms import Task

logger = logging.getLogger(__name__)

IMAGENET_1K = 1000
IMAGENET_21K = 11221
CARS = 196
COCO = 80
_TAG_CLASSES = (20, COCO, 81, 9605)  # Pascal VOC, COCO, NUS-WIDE, OpenImages
_TAG_SIZES = {"tresnet_s": 224, "tresnet_m": 224, "tresnet_l": 448, "tresnet_v2_l": 448}
_FILES = {("classify", IMAGENET_1K): "imagenet_1k.txt", ("tag", COCO): "coco_80.txt"}
CARS_SLOPE = 1e-6
"""The leaky-ReLU slope that V2-L's cars weights were trained with, in every layer."""


def guess_task(num_classes: int, keys: Collection[str]) -> Task:
    """``tag`` for weights with a head or a number of classes of the multi-label releases, else ``classify``."""
    of_multi_label = "head.group_bias" in keys or "head.classify.bias" in keys
    return "tag" if of_multi_label or num_classes in _TAG_CLASSES else "classify"


def preprocessing(arch: str, task: Task, num_classes: int, image_size: int | None = None) -> Preprocessing:
    """How the release with such weights was evaluated; ``image_size`` is the caller's own wish, in pixels.

    ImageNet-1k at 224: the shorter side to 256, centre crop. All others, 448 included: squashed, without a crop.

    Raises:
        UserError: for a size that cannot be.
    """
    if task == "tag":
        how = Preprocessing(image_size=_TAG_SIZES.get(arch, 640), resize_mode="squash")
    elif num_classes == CARS:
        how = Preprocessing(image_size=368, resize_mode="squash")
    elif num_classes == IMAGENET_21K or (image_size or 0) >= 448:
        how = Preprocessing(image_size=224, resize_mode="squash")
    else:
        how = Preprocessing(image_size=224, crop_pct=0.875)
    return how.changed(image_size=image_size)


def label_names(task: Task, num_classes: int) -> list[str]:
    """ImageNet-1k's or COCO's names in the order of the released weights, else ``class_0``, ``class_1`` and so on."""
    name = _FILES.get((task, num_classes))
    if name is None:
        return [f"class_{index}" for index in range(num_classes)]
    return (files("tresnet") / "labels" / name).read_text(encoding="utf-8").splitlines()


def v2_slope(arch: str, num_classes: int, inplace_abn: bool) -> float | None:
    """The one slope of all leaky ReLUs where it is not the architecture's: V2-L's cars weights, in the authors' form.

    The authors' V2 code has 1e-6 everywhere, the ImageNet-21k weights and timm 1e-2 and 1e-3, and no file says which.
    """
    if arch != "tresnet_v2_l":
        return None
    slope = CARS_SLOPE if inplace_abn and num_classes == CARS else None
    logger.info(
        "V2-L: leaky-ReLU slopes %s, as the %s weights; --negative-slope sets another",
        slope or "1e-2 (stem) and 1e-3",
        "cars" if slope else "ImageNet-21k",
    )
    return slope
