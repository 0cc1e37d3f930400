"""Pushing to a stand-in for the hub: what arrives opens in plain PEFT, what broke off goes on, no token is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hub_stand_in import TOKEN, HubStandIn
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from serving_fixtures import write_adapter
from transformers import AutoModelForCausalLM

from fitune.cli import cli
from fitune.errors import ModelError
from fitune.exporting.push import pack, push

REPO = "me/pig-latin"
# huggingface_hub 2.4 sends objects in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubStandIn().listening() as hub:
        yield hub


@pytest.fixture
def run_folder(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "demo"
    adapter = write_adapter(tiny_llama, folder / "adapter", 1)
    (adapter / "README.md").write_text("---\nlicense: unknown\n---\n# demo\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").write_bytes(b"states")
    return folder


def api(hub: HubStandIn, token: str = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_what_arrives_opens_in_plain_peft(hub, run_folder, tiny_llama, tmp_path):
    parcel = pack(str(run_folder))
    url = push(parcel, REPO, licence="apache-2.0", api=api(hub))
    assert url == f"{hub.url}/{REPO}/commit/{'a' * 40}"
    assert hub.private[REPO]
    assert set(hub.repos[REPO]) == {name for name, _ in parcel.files} and "optimizer.pt" not in hub.repos[REPO]
    arrived = tmp_path / "arrived"
    for name, contents in hub.repos[REPO].items():
        path = arrived / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    assert ModelCard.load(arrived / "README.md").data["license"] == "apache-2.0"
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = [
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder)(ids).logits
            for folder in (run_folder / "adapter", arrived)
        ]
    assert torch.equal(*logits)


@pytest.mark.slow  # the hub's client waits before it tries again
def test_a_push_that_broke_off_goes_on_and_sends_nothing_twice(hub, run_folder, tmp_path):
    second = run_folder / "adapter" / "more.safetensors"
    second.write_bytes(b"x" * 1000)
    hub.drops = 50
    parcel = pack(str(run_folder))
    with pytest.raises(ModelError, match="push again to go on"):
        push(parcel, REPO, api=api(hub))
    hub.drops = 0
    push(parcel, REPO, api=api(hub))
    hub.uploads.clear()
    push(parcel, REPO, api=api(hub))
    assert hub.uploads == []


def test_a_refusal_is_a_sentence_without_the_token(hub, run_folder):
    parcel = pack(str(run_folder))
    with pytest.raises(ModelError, match=r"refused to write to me/pig-latin \(401\)") as refused:
        push(parcel, REPO, api=api(hub, "hf_wrong_token"))
    assert "hf_wrong_token" not in str(refused.value)
    hub.refuse = 403
    with pytest.raises(ModelError, match="403"):
        push(parcel, REPO, api=api(hub))


def test_no_connection_and_an_odd_name(hub, run_folder):
    parcel = pack(str(run_folder))
    with pytest.raises(ModelError, match="connection to the hub broke"):
        push(parcel, REPO, api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))
    with pytest.raises(ModelError, match="takes for no name"):
        push(parcel, "a/b/c d", api=api(hub))


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no weights"):
        pack(str(tmp_path))
    with pytest.raises(ModelError, match='no run or folder "nowhere"'):
        pack("nowhere", str(tmp_path))


def test_nothing_is_sent_without_being_asked_for(run_folder):
    result = CliRunner().invoke(cli, ["push", "demo", "--to", REPO, "--runs", str(run_folder.parent)])
    assert isinstance(result.exception, ModelError) and "--yes is needed" in str(result.exception)
    assert "adapter_model.safetensors" in result.stderr and "private" in result.stderr
