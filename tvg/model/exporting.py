"""Exports a policy to a plain Hugging Face folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from tvg.core.writing import unfinished_path, whole_folder
from tvg.model.adapters import has_adapters, merged_state, save_adapter
from tvg.model.folder_files import one_line
from tvg.model.policy import Policy
from tvg.model.sharding import Unsharded
from tvg.model.weight_files import CHECKSUM_FILE, checksum_text

log = logging.getLogger(__name__)

ADAPTER = "adapter"  # subfolder of an export
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export_checkpoint(
    policy: Policy,
    processor: Any,
    folder: Path,
    *,
    notes: Mapping[str, str],
    is_writer: bool = True,
) -> Path:
    """Writes a plain Hugging Face folder atomically; replaces an existing one.

    If ranks share the weights, all of them have to call this together.

    Adapters are merged into the weights, and also saved separately in `adapter/` inside the folder.
    `weights.sha256` contains the checksums of the weights, which are verified on loading.

    Args:
        policy: the policy whose weights and config are written.
        processor: tokenizer, video processor and chat template.
        folder: the folder to write.
        notes: additional text files, name -> content.
        is_writer: this rank writes the folder; False: it only provides its share of the weights.

    Raises:
        OSError: the disk is full or cannot be written. The message names the folder
            and, if the disk is full, the disk.
    """
    state = complete_state(policy, keep=is_writer)
    if not is_writer:
        return folder
    with whole_folder(folder) as temporary:
        if has_adapters(policy.model):
            policy.model.save_pretrained(temporary, state_dict=merged_state(policy.model, state))
            save_adapter(policy.model, temporary / ADAPTER, state)
        else:
            policy.model.save_pretrained(temporary, state_dict=state)
        _write_rest(processor, temporary, notes)
        (temporary / CHECKSUM_FILE).write_text(checksum_text(temporary), encoding="utf-8")
    return folder


def complete_state(policy: Policy, *, keep: bool) -> dict[str, Tensor]:
    """Returns the state dict of the policy's model, with complete tensors.

    Sharded tensors are collected one by one and copied to CPU memory.

    Args:
        policy: the policy; if ranks share its weights, all of them have to call this together.
        keep: False: take part, but return an empty dict.
    """
    if isinstance(policy.sharding, Unsharded):
        return dict(policy.model.state_dict()) if keep else {}
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}  # tied weights keep one tensor under several names
    for name, value in policy.full_state():
        if not keep:
            continue
        key = id(parameters.get(name, value))
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        state[name] = copies[key]
    prefix = "model."
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


def rehearse_export(
    policy: Policy, processor: Any, folder: Path, *, notes: Mapping[str, str]
) -> None:
    """Writes an export without weights and removes it again, to find errors before training.

    Args:
        policy: as for `export_checkpoint`.
        processor: as for `export_checkpoint`.
        folder: as for `export_checkpoint`; it is not changed.
        notes: as for `export_checkpoint`.

    Raises:
        ValueError: a file cannot be written, or the disk has too little space for the weights.
    """
    temporary = unfinished_path(folder.with_name(f"{folder.name}-rehearsal"))
    try:
        temporary.mkdir(parents=True)
        policy.model.config.save_pretrained(temporary)
        policy.model.generation_config.save_pretrained(temporary)
        _write_rest(processor, temporary, notes)
    except Exception as error:  # libraries may raise anything
        raise ValueError(f"the export to {folder} would fail: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    needed = sum(value.numel() * value.element_size() for value in policy.model.parameters())
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ValueError(
            f"run_dir: the export to {folder} needs {needed / 2**30:.1f} GiB, but the disk has "
            f"{free / 2**30:.1f} GiB left"
        )


def _write_rest(processor: Any, folder: Path, notes: Mapping[str, str]) -> None:
    processor.save_pretrained(folder)
    for name, text in notes.items():
        (folder / name).write_text(text, encoding="utf-8")


def savable_generation_config(config: GenerationConfig, folder: Path) -> GenerationConfig:
    """Returns a generation config that transformers can save.

    transformers reads some files that it refuses to save, e.g. `do_sample: false` with a
    `temperature`. Only the token ids are kept from these. tvg reads nothing else from the config,
    because it has separate sampling settings.

    Args:
        config: generation config of a loaded model.
        folder: the config's source folder, for the message.
    """
    try:
        config.validate(strict=True)
    except ValueError as error:
        kept = {name: getattr(config, name, None) for name in _TOKEN_IDS}
        log.warning(
            "%s/generation_config.json: transformers refuses to save it (%s); exports will contain "
            "only its token ids",
            folder,
            one_line(error),
        )
        return GenerationConfig(**kept)
    return config
