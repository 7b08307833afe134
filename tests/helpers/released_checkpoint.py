"""Writes a checkpoint folder like a released one: real tokenizer, old weight names, two shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration


def write_release(layout: Path, folder: Path) -> Path:
    """Copies the files of `layout` to a new folder and adds random bfloat16 weights.

    Args:
        layout: folder with config, template and tokenizer files, and `weight_names.txt`.
        folder: folder to create; also returned.
    """
    folder.mkdir(parents=True)
    for path in layout.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    config = AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    state = model.state_dict()
    names = (layout / "weight_names.txt").read_text().split()
    tensors = {name: state[today(name)].clone() for name in names}
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def today(name: str) -> str:
    """Returns the name that transformers 5 uses for a released weight."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)
