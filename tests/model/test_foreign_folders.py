"""Tests that untrusted folders load completely or raise a one-line error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hostile_targets import pickle_that_writes, script_that_writes
from helpers.tiny_policy import make_checkpoint
from safetensors.torch import load_file, save_file

from tvg.model.exporting import export_checkpoint, rehearse_export


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def load(folder: Path) -> Any:
    chosen = make_checkpoint(folder)
    processor = chosen.load_processor()
    return chosen.load_policy(processor), processor


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(folder)
    message = str(caught.value)
    assert message.startswith("model.path: ")
    assert "\n" not in message
    return message


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **values}))


JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_names_code_is_refused(folder, tmp_path, name):
    marker = tmp_path / "marker"
    script_that_writes(folder / "payload.py", marker)
    names = ("AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoModel", "AutoImageProcessor")
    change(folder / name, auto_map={key: "payload.Payload" for key in names})
    message = refused(folder)
    assert f"{folder / name}: auto_map names code" in message
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["payload", "llama", "", 3, None, ["qwen2_5_vl"]])
def test_code_of_an_unknown_model_type_is_not_run(folder, tmp_path, model_type):
    marker = tmp_path / "marker"
    script_that_writes(folder / "configuration_payload.py", marker)
    script_that_writes(folder / "modeling_payload.py", marker)
    change(folder / "config.json", model_type=model_type)
    refused(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers: expected at most 1,000"),
        ("config.json", {"text_config": {"num_hidden_layers": 10**7}}, "expected at most 1,000"),
        ("config.json", {"vision_config": {"depth": 10**7}}, "depth: expected at most 1,000"),
        ("config.json", {"vocab_size": 10**12}, "vocab_size: expected at most 100,000,000"),
        ("config.json", {"hidden_size": -1}, "hidden_size: expected at most"),
        ("config.json", {"_attn_implementation": "someone/kernel"}, "names a kernel to download"),
        ("config.json", {"text_config": "a"}, "model.path: "),
        ("generation_config.json", {"eos_token_id": [10**9]}, "expected ids below"),
        ("generation_config.json", {"custom_generate": "someone/code"}, "names code"),
        ("tokenizer_config.json", {"chat_template": "x" * 300_000}, "more than 0.25 MiB"),
        ("adapter_config.json", {"base_model_name_or_path": "/elsewhere"}, "is an adapter"),
    ],
)
def test_an_implausible_value_gives_one_error_line(folder, name, values, problem):
    change(folder / name, **values)
    assert problem in refused(folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[" * 100_000, "cannot be read"), ("[]", "expected a JSON object"), ("{", "cannot be read")],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.json"])
def test_invalid_json_gives_one_error_line(folder, name, text, problem):
    (folder / name).write_text(text)
    assert problem in refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "vocab.json"])
def test_a_huge_file_is_not_read(folder, name):
    with (folder / name).open("wb") as file:
        file.truncate(60 * 2**20)
    assert "has 60.0 MiB; at most" in refused(folder)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused_without_loading(folder, tmp_path, pickled):
    (folder / "model.safetensors").unlink()
    pickle_that_writes(folder / pickled, tmp_path / "marker")
    assert f"holds pickled weights only ({pickled})" in refused(folder)
    assert not (tmp_path / "marker").exists()


def test_pickles_next_to_the_weights_are_not_loaded(folder, tmp_path):
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin"):
        pickle_that_writes(folder / name, tmp_path / "marker")
    load(folder)
    assert not (tmp_path / "marker").exists()


def test_weights_of_the_wrong_length_give_one_error_line(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for changed, problem in {
        data[:-1]: "is truncated or has extra bytes",
        data + b"\0": "is truncated or has extra bytes",
        data[: 8 + length // 2]: "is truncated or not a safetensors file",
        (2**62).to_bytes(8, "little") + data[8:]: "is truncated or not a safetensors file",
        data[:4]: "is truncated or not a safetensors file",
        b"": "is truncated or not a safetensors file",
        data[:8] + b"[" * length + data[8 + length :]: "its header cannot be read",
    }.items():
        path.write_bytes(changed)
        assert problem in refused(folder)


def in_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in shards.items() for name in part}
    change(folder / "model.safetensors.index.json", metadata={}, weight_map=weight_map)


def test_a_missing_shard_is_named(folder):
    in_shards(folder)
    load(folder)
    (folder / "b.safetensors").unlink()
    assert "lacks b.safetensors, which model.safetensors.index.json lists" in refused(folder)


@pytest.mark.parametrize("name", ["../b.safetensors", "/b.safetensors", "b.bin", "a/b.safetensors"])
def test_shards_must_be_safetensors_in_the_same_folder(folder, name):
    in_shards(folder)
    change(folder / "model.safetensors.index.json", weight_map={"a": name})
    assert "is not a safetensors file in the same folder" in refused(folder)


def test_weights_that_lack_tensors_are_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("layers.1.mlp.down_proj.weight"))
    del state[name]
    save_file(state, path, metadata={"format": "pt"})
    assert "lack 1 of the model's tensors" in refused(folder)


def test_more_layers_than_weights_are_refused_before_building(folder):
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "num_hidden_layers": 999, "layer_types": None}
    change(folder / "config.json", text_config=text)
    assert "num_hidden_layers is 999, but the weights hold 2 layers" in refused(folder)


def test_a_flipped_byte_of_an_export_is_detected(folder, tmp_path):
    export = export_checkpoint(*load(folder), tmp_path / "export", notes={})
    load(export)
    path = export / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert f"{path} has changed since it was exported" in refused(export)
    (export / "weights.sha256").unlink()
    load(export)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0" * 64 + "  none.safetensors\n", "lacks none.safetensors"),
        ("0" * 64 + "  ../a.safetensors\n", "expected a SHA-256"),
        ("hello\n", "line 1: expected a SHA-256"),
    ],
)
def test_invalid_checksums_give_one_error_line(folder, text, problem):
    (folder / "weights.sha256").write_text(text)
    assert problem in refused(folder)


def test_generation_settings_that_cannot_be_saved_are_left_out(folder, tmp_path, caplog):
    change(folder / "generation_config.json", do_sample=False, temperature=0.1)
    policy, processor = load(folder)
    assert "generation_config.json: transformers refuses to save it" in caplog.text
    export = export_checkpoint(policy, processor, tmp_path / "export", notes={})
    before = json.loads((folder / "generation_config.json").read_text())
    after = json.loads((export / "generation_config.json").read_text())
    assert after["eos_token_id"] == before["eos_token_id"]
    assert after["pad_token_id"] == before["pad_token_id"]
    assert "temperature" not in after


def test_an_export_does_not_need_the_original_folder(folder, tmp_path):
    policy, processor = load(folder)
    shutil.rmtree(folder)
    export = export_checkpoint(policy, processor, tmp_path / "export", notes={})
    again, _ = load(export)
    state = again.model.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in policy.model.state_dict().items())


def test_the_rehearsal_detects_exports_that_would_fail(folder, tmp_path, monkeypatch):
    policy, processor = load(folder)
    target = tmp_path / "run" / "export"
    rehearse_export(policy, processor, target, notes={"tvg.yaml": "a"})
    assert list(target.parent.iterdir()) == []
    policy.model.generation_config.temperature = 0.1
    with pytest.raises(ValueError, match=r"the export to .*export would fail: "):
        rehearse_export(policy, processor, target, notes={})
    policy.model.generation_config.temperature = None
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the export to .*export would fail: "):
        rehearse_export(policy, processor, tmp_path / "file" / "export", notes={})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"^run_dir: the export to .* needs 0\.0 GiB"):
        rehearse_export(policy, processor, target, notes={})
