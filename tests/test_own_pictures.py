"""README's way from folders of pictures to answers, with its own commands, on real photographs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from conftest import needs, run_tresnet, running_server, until
from google.protobuf import text_format
from photographs import PHOTOGRAPHS, write_folders
from tritonclient.grpc import model_config_pb2 as pb

README = Path(__file__).parents[1] / "README.md"


def commands() -> list[list[str]]:
    section = README.read_text().partition("## Bring your own pictures\n")[2].partition("\n## ")[0]
    [block] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def copy_as_exported_without_card(repository: Path, known: str, name: str) -> None:
    model = shutil.copytree(repository / known, repository / ".aside")
    for file in ("config.pbtxt", "configs/embedded.pbtxt"):
        config = text_format.Parse((model / file).read_text(), pb.ModelConfig())
        config.name = name
        facts = json.loads(config.parameters["version.1"].string_value)
        del facts["card"]
        config.parameters["version.1"].string_value = json.dumps(facts)
        (model / file).write_text(text_format.MessageToString(config))
    model.rename(repository / name)


@pytest.mark.timeout(1000)  # half a minute, where nothing else runs
def test_from_folders_to_answers(tmp_path: Path) -> None:
    needs("curl")
    kept_back = write_folders(tmp_path / "my_pictures")
    (tmp_path / "my_pictures" / ".thumbnails").mkdir()
    shutil.copy(kept_back[0][1], tmp_path / "my_pictures" / ".thumbnails")
    (tmp_path / "my_pictures" / "still empty").mkdir()
    train, export, curl = commands()
    assert [train[0], export[0], curl[0]] == ["tresnet", "tresnet", "curl"]
    trained = run_tresnet(*train[1:], cwd=tmp_path, timeout=800)
    assert trained.returncode == 0, trained.stderr
    assert "no label for want of pictures: still empty" in trained.stderr
    assert "5 labels, 301 pictures to train on" in trained.stderr
    assert "my_pictures, validation and test pictures drawn from it at random by the seed 0" in trained.stderr
    repository = tmp_path / "model_repository"
    repository.mkdir()
    with running_server(tmp_path, ready_within_s=None) as server:  # a reader's runs already
        exported = run_tresnet(*export[1:], cwd=tmp_path)
        assert exported.returncode == 0, exported.stderr
        server.wait_ready(100)
        copy_as_exported_without_card(repository, "mine", "older")
        right = 0
        for label, path in kept_back:
            command = [part.replace("http://127.0.0.1:8080", server.url).replace("cat.jpg", path.name) for part in curl]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
            right += json.loads(done.stdout)["results"][0]["predictions"][0]["label"] == label
        assert right >= 0.65 * len(kept_back), "guessing has a fifth, and this model some nine tenths"
        mine = httpx.get(f"{server.url}/models/mine").json()
        assert mine["labels"] == sorted(PHOTOGRAPHS)
        assert mine["card"].startswith((tmp_path / "runs" / "mine" / "model_card.md").read_text().rstrip())
        until(lambda: httpx.get(f"{server.url}/models/older").status_code == 200, "a model without a card is served")
        assert httpx.get(f"{server.url}/models/older").json()["card"] is None
