"""The models that every server in the comparison serves: one TorchScript file each, in a model repository.

Weights are fresh: speed does not depend on them. The one-convolution model costs next to nothing to run, so that what
is measured is the serving around it.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

import tresnet
from benchmarks.timing import median_seconds
from export.golden import golden_picture
from export.program import DTYPES, Normalisation, ServingProgram
from export.program_file import load_program, write_torchscript
from export.repository import publish
from tresnet.contract import PLATFORMS, PROGRAM_FILES, ModelContract, VersionFacts, labels_digest
from tresnet.heads import linear_head
from tresnet.model import VARIANTS, TResNet, fold_norms
from tresnet.picture import Preprocessing
from tresnet.terms import Precision

NUM_CLASSES = 1000
MAX_BATCH_SIZE = 8
LABELS = [f"class_{index}" for index in range(NUM_CLASSES)]
_CPU = torch.device("cpu")


class OneConvolution(nn.Module):
    """``[N, 3, S, S]`` pictures to ``[N, 1000]`` logits through one strided convolution and a linear layer."""

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.num_features, 16, 16)
        self.head = nn.Linear(self.num_features, NUM_CLASSES)

    def feature_map(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        return features

    def classify_and_embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embedding = features.mean(dim=[2, 3])
        return self.head(embedding), embedding


@functools.cache
def build_model(
    kind: str, image_size: int, precision: Precision, repository: Path, max_batch_size: int = MAX_BATCH_SIZE
) -> Path:
    """Publish ``kind`` (an architecture or ``one_convolution``) as ``bench`` in a new repository; returns model.pt.

    Anew in each process: the last one may have had another export.
    """
    shutil.rmtree(repository, ignore_errors=True)
    torch.manual_seed(0)
    network: nn.Module
    if kind == "one_convolution":
        network, features = OneConvolution(), OneConvolution.num_features
    else:
        variant = VARIANTS[kind]
        features = variant.num_features
        network = fold_norms(TResNet(variant, linear_head(features, NUM_CLASSES)))
    network.eval()
    how = Preprocessing(image_size=image_size, crop_pct=0.875)
    program = ServingProgram(network, "classify", Normalisation(), 1.0, DTYPES[precision]).eval().requires_grad_(False)
    contract = ModelContract(
        name="bench",
        version="1",
        task="classify",
        preprocessing=how,
        num_labels=NUM_CLASSES,
        embedding_size=features,
        heat_maps=None,  # peers serve the same file, and need no more than scores
        max_batch_size=max_batch_size,
        labels_sha256=labels_digest(LABELS),
        facts=VersionFacts(
            architecture=kind,
            precision=precision,
            source_sha256="0" * 64,
            tools={"tresnet": tresnet.__version__, "torch": torch.__version__},
            golden=golden_picture(program, how),
        ),
    )
    return (
        publish(repository, contract, LABELS, lambda path: write_torchscript(program, path))
        / PROGRAM_FILES[PLATFORMS["torchscript"]]
    )


def bare_images_per_s(
    model: Path,
    image_size: int,
    batch_size: int = MAX_BATCH_SIZE,
    seconds: float = 10.0,
    device: torch.device = _CPU,
    *,
    copies: bool = False,
) -> float:
    """What the program alone does in this process, on ``device`` or with every core: the bound of any server.

    With ``copies`` its pictures come from the CPU's memory and its answers go there, as a server's do.
    """
    program = load_program(model, device)
    pictures = torch.randint(0, 256, (batch_size, image_size, image_size, 3), dtype=torch.uint8)
    if not copies:
        pictures = pictures.to(device)

    def run() -> None:
        for answer in program(pictures.to(device)):
            if copies:
                answer.cpu()

    with torch.inference_mode():
        return batch_size / median_seconds(run, device, seconds=seconds)
