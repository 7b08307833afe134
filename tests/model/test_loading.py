"""Tests of loading checkpoints, freezing their parts, refusing unusable ones, and exporting."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_policy import make_parts
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from tvg.model.adapters import no_adapter
from tvg.model.exporting import export_checkpoint
from tvg.model.loading import ModelSource


def spec(path, **changes):
    settings = {
        "path": None if path is None else str(path),
        "create": None,
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "freeze_vision": False,
        "freeze_merger": False,
        "freeze_language": False,
        "gradient_checkpointing": False,
        "adapter": no_adapter,
    }
    return ModelSource(**{**settings, **changes})


def trained(policy):
    return {name for name, p in policy.named_parameters() if p.requires_grad}


def test_the_merger_can_be_trained_alone(tiny_checkpoint):
    checkpoint = spec(tiny_checkpoint, freeze_vision=True, freeze_language=True)
    policy = checkpoint.load_policy(checkpoint.load_processor())
    assert trained(policy)
    assert all(".visual.merger." in name for name in trained(policy))


def test_freeze_vision_freezes_only_the_trunk(tiny_checkpoint):
    checkpoint = spec(tiny_checkpoint, freeze_vision=True)
    policy = checkpoint.load_policy(checkpoint.load_processor())
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in policy.named_parameters()
        if ".visual." in name and ".merger." not in name
    }


def test_nothing_left_to_train_is_an_error(tiny_checkpoint):
    checkpoint = spec(tiny_checkpoint, freeze_vision=True, freeze_merger=True, freeze_language=True)
    with pytest.raises(ValueError, match="nothing is left to train"):
        checkpoint.load_policy(checkpoint.load_processor())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": "float8"}, "model.dtype.*float8"),
        ({"attn_implementation": "flash"}, "model.attn_implementation.*flash"),
    ],
)
def test_errors_for_unknown_options_name_the_key(tiny_checkpoint, changes, problem):
    with pytest.raises(ValueError, match=problem):
        spec(tiny_checkpoint, **changes)


def test_the_error_for_missing_flash_attention_explains_the_installation(tiny_checkpoint):
    with pytest.raises(ValueError, match=r"flash-attn.*install.*sdpa"):
        spec(tiny_checkpoint, attn_implementation="flash_attention_2")


def test_flash_attention_needs_half_precision(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    with pytest.raises(ValueError, match=r"cannot compute in model\.dtype=float32"):
        spec(tiny_checkpoint, attn_implementation="flash_attention_2")
    spec(tiny_checkpoint, attn_implementation="flash_attention_2", dtype="bfloat16")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path: no such folder: .*nowhere"):
        spec(tmp_path / "nowhere").folder()


def test_no_path_and_nothing_to_create_is_an_error():
    with pytest.raises(ValueError, match=r"model\.path"):
        spec(None)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path: .* contains no config\.json"):
        spec(tmp_path).folder()


def test_an_unsupported_model_type_is_refused(tiny_checkpoint, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"'llama'.*supported.*qwen2_5_vl"):
        spec(tmp_path).load_policy(spec(tiny_checkpoint).load_processor())


def test_an_export_loads_with_transformers_alone(tiny_checkpoint, tiny_world, tmp_path):
    parts = make_parts(tiny_checkpoint, tiny_world)
    folder = export_checkpoint(
        parts.policy, parts.processor, tmp_path / "export", notes={"tvg.yaml": "prompt: {}\n"}
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    for name, value in parts.policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == parts.processor.chat_template
    assert (folder / "tvg.yaml").read_text() == "prompt: {}\n"
    assert not list(tmp_path.glob(".*"))


def test_a_failed_export_keeps_the_previous_export(tiny_checkpoint, tiny_world, tmp_path):
    parts = make_parts(tiny_checkpoint, tiny_world)
    export_checkpoint(parts.policy, parts.processor, tmp_path / "export", notes={})
    before = load_file(tmp_path / "export" / "model.safetensors")

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    with torch.no_grad():
        next(parts.policy.parameters()).add_(1)
    with pytest.raises(OSError, match="disk full"):
        export_checkpoint(parts.policy, Broken(), tmp_path / "export", notes={})
    after = load_file(tmp_path / "export" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
