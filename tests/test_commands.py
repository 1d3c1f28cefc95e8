"""The command line: user errors are one sentence and status 2; a version appears whole or not at all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import call_tresnet, random_checkpoint, run_side_by_side, run_tresnet
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tresnet.contract import EMBEDDED, RUN_TIMEOUT


def test_help(tmp_path: Path) -> None:
    commands = ("train", "eval", "export", "serve", "classify", "tag", "models", "doctor", "bench")
    shown = {}
    for done in run_side_by_side([("--help",), *((command, "--help") for command in commands)], cwd=tmp_path):
        assert done.returncode == 0
        assert "Usage" in done.stdout
        shown[done.args[1]] = done.stdout
    assert "Default: 8080" in shown["serve"]
    assert "pictures of your own" in " ".join(shown["train"].replace("│", " ").split())
    made = subprocess.run(["make", "help"], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert re.search("^make serve +train and export", made.stdout, re.MULTILINE)
    assert run_tresnet("--version", cwd=tmp_path).stdout == f"tresnet {version('tresnet-serving')}\n"


def test_a_command_loads_its_own_station_alone() -> None:
    """Asking about a folder began with a fifth of a second of imports for stations that it does not pass."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, commands.main; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"numpy", "torch", "grpc", "fastapi", "PIL", "httpx", "matplotlib"} & set(loaded)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": 1}, tmp_path / "other.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").touch()
    for name in ("text.pt", "other.pt", "missing.pt", "run"):
        run = run_tresnet if name == "run" else call_tresnet  # one by the console script itself
        result = run("export", name, "--task", "classify", "--name", "m", cwd=tmp_path)
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert name in result.stderr
    assert "give run/best.pt" in result.stderr
    assert not (tmp_path / "model_repository").exists()


def test_unknown_recipe_and_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "digits" in run_tresnet("train", "nothing", cwd=tmp_path).stderr
    side = call_tresnet("train", "digits", "--image-size", 30, cwd=tmp_path)
    norm = call_tresnet("train", "digits", "--norm", "x", cwd=tmp_path)
    assert (side.returncode, norm.returncode) == (2, 2)
    assert side.stderr == "error: the image size cannot be 30: Input should be a multiple of 4\n"
    assert "'--norm'" in norm.stderr
    monkeypatch.setenv("TRESNET_PROT", "80")
    monkeypatch.setenv("TRESNET_ELSEWHERE", "1")
    setting, option = run_side_by_side([("serve",), ("serve", "--port", 99999)], cwd=tmp_path)
    assert (setting.returncode, option.returncode) == (2, 2)
    said = (
        "unknown setting TRESNET_ELSEWHERE; unknown setting TRESNET_PROT (did you mean TRESNET_PORT?); docs/settings.md"
    )
    assert said in setting.stderr
    assert "'--port'" in option.stderr


def test_exported_repository(models: Path) -> None:
    folder = models / "model_repository" / "digits"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
    embedded = text_format.Parse((folder / "configs/embedded.pbtxt").read_text(), pb.ModelConfig())
    assert (config.platform, config.backend) == ("pytorch_libtorch", "")
    assert (embedded.platform, embedded.backend) == ("", "python")
    assert list(config.input[0].dims) == [32, 32, 3]
    assert (folder / "labels.txt").read_text().split() == [str(i) for i in range(10)]
    program = torch.jit.load(folder / "1" / "model.pt")
    scores, embedding, *_ = program(torch.zeros(3, 32, 32, 3, dtype=torch.uint8))
    assert (scores.shape, embedding.shape) == ((3, 10), (3, 2048))
    assert torch.allclose(scores.sum(1), torch.ones(3))


def test_versions_must_agree_and_are_not_overwritten(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "a.pt", task="classify", labels=["x", "y"], size=32, arch="tresnet_s")
    random_checkpoint(tmp_path / "b.pt", task="classify", labels=["x", "z"], size=32, arch="tresnet_s")

    options = ("--task", "classify", "--name", "m", "--max-batch-size", 2)

    def export(name: str) -> int:
        return run_tresnet("export", name, *options, cwd=tmp_path).returncode

    def refused(name: str, *more: object) -> bool:
        return call_tresnet("export", name, *options, *more, cwd=tmp_path).returncode == 2

    model = tmp_path / "model_repository" / "m"
    model.mkdir(parents=True)  # by hand, empty: the first version brings all that versions share
    assert export("a.pt") == 0
    assert refused("a.pt", "--version", 1)
    assert refused("b.pt")
    assert export("a.pt") == 0
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "config.pbtxt", "configs", "labels.txt"]
    config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    assert {"version.1", "version.2"} <= set(config.parameters)
    shutil.rmtree(model / "1")
    (model.parent / ".staging-killed" / "1").mkdir(parents=True)
    (model / ".staging-killed").mkdir()
    assert export("a.pt") == 0
    assert not [*model.parent.rglob(".staging-*")], "what killed exports left"
    config = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    assert [key for key in sorted(config.parameters) if key.startswith("version.")] == ["version.2", "version.3"]


def test_a_full_disk_leaves_nothing_of_a_version(models: Path, tmp_path: Path) -> None:
    export = ("export", models / "tagger.pt", "--task", "tag", "--name", "m", "--max-batch-size", "2")
    done = run_tresnet(*export, cwd=tmp_path, largest_file=2**20)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "model.pt: File too large" in done.stderr
    assert not (tmp_path / "model_repository").exists()


def test_the_fastest_precision_of_this_machine_is_taken(models: Path, tmp_path: Path) -> None:
    arguments = ("--task", "tag", "--name", "fast", "--precision", "auto", "--max-batch-size", 2)
    exported = run_tresnet("export", models / "tagger.pt", *arguments, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    flags = Path("/proc/cpuinfo").read_text().split()
    expected = (
        "fp16" if torch.cuda.is_available() else "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
    )
    config = (tmp_path / "model_repository" / "fast" / "config.pbtxt").read_text()
    assert rf"\"precision\":\"{expected}\"" in config
    assert "apart" in exported.stderr + exported.stdout


def test_what_runs_without_the_package_knows_its_words() -> None:
    root = Path(__file__).parents[1]
    assert f'"{RUN_TIMEOUT}"' in (root / "export" / "embedded_model.py").read_text()
    assert f"--model-config-name={EMBEDDED}" in (root / "deploy" / "e2e" / "images" / "tritonserver").read_text()
