"""Loads a policy from a Hugging Face folder; `tvg.model.exporting` does the reverse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from tvg.core.limits import model_path_problems, refuse
from tvg.model.adapters import Adapter, LoRA
from tvg.model.exporting import savable_generation_config
from tvg.model.families import Family, family_of, read_config
from tvg.model.folder_files import check_folder_files, check_is_checkpoint, one_line
from tvg.model.freezing import freeze_parts
from tvg.model.policy import Policy
from tvg.model.weight_files import check_weight_files
from tvg.model.weight_reader import WeightReader, empty_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelSource:
    """A checkpoint folder and its loading options.

    Args:
        path: folder with config, weights, tokenizer and processor; None: use `create`.
        create: writes a new checkpoint and returns its folder; used only if `path` is None.
        dtype: "float32", "bfloat16" or "float16".
        attn_implementation: "sdpa", "eager" or "flash_attention_2".
        freeze_vision: freeze the vision trunk (everything in the tower except the merger).
        freeze_merger: freeze the merger between vision and language.
        freeze_language: freeze the language model.
        gradient_checkpointing: recompute activations in backward.
        adapter: adds adapters to a model after freezing; see `tvg.model.adapters`.

    Raises:
        ValueError: `path` and `create` are both None, or an option is invalid; names the key.
    """

    def __init__(
        self,
        *,
        path: str | None,
        create: Callable[[], str | Path] | None,
        dtype: str,
        attn_implementation: str,
        freeze_vision: bool,
        freeze_merger: bool,
        freeze_language: bool,
        gradient_checkpointing: bool,
        adapter: Adapter,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"model.dtype: expected one of {sorted(DTYPES)}, got {dtype!r}")
        refuse(model_path_problems(has_path=path is not None, can_create=create is not None))
        self.path = Path(path) if path is not None else None
        self.create = create
        self.dtype = DTYPES[dtype]
        self.attn_implementation = attn_implementation
        self.freeze_vision = freeze_vision
        self.freeze_merger = freeze_merger
        self.freeze_language = freeze_language
        self.gradient_checkpointing = gradient_checkpointing
        self.adapter = adapter
        self._is_checked = False
        _check_attention(attn_implementation, dtype)

    def folder(self) -> Path:
        """Returns the checkpoint's folder; creates the checkpoint first if `path` is None.

        Raises:
            ValueError: the folder is missing, is not a checkpoint, or is refused by
                `check_folder_files`.
        """
        if self.path is None:
            assert self.create is not None
            self.path = Path(self.create())
        check_is_checkpoint(self.path)
        if not self._is_checked:
            check_folder_files(self.path)
            self._is_checked = True
        return self.path

    def load_family(self) -> Family:
        """Returns the model family of the checkpoint.

        Raises:
            ValueError: the folder or its config cannot be used, or its model type is not supported.
        """
        return family_of(read_config(self.folder()))

    def load_processor(self) -> Any:
        """Loads tokenizer, video processor and chat template.

        Raises:
            ValueError: no processor with a chat template can be loaded, or it belongs to another
                model family.
        """
        from transformers import AutoProcessor

        folder = self.folder()
        try:
            processor = AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # untrusted files can make libraries raise anything
            raise ValueError(
                f"model.path: no processor could be loaded from {folder}: {one_line(error)}"
            ) from error
        if not hasattr(processor, "tokenizer") or not hasattr(processor, "chat_template"):
            raise ValueError(
                f"model.path: the files of {folder} load as {type(processor).__name__}; expected a "
                "processor with a tokenizer"
            )
        if processor.chat_template is None:
            raise ValueError(f"model.path: the processor in {folder} has no chat template")
        family = self.load_family()
        try:
            family.check_processor(processor)
        except ValueError as error:
            raise ValueError(f"model.path: {folder}: {error}") from error
        return processor

    def load_policy(self, processor: Any, *, forward_by: str = "shared_prefix") -> Policy:
        """Loads the model as a policy in eval mode, with the configured freezing and adapters."""
        model = load_model(self.folder(), self.dtype, self.attn_implementation)
        family_of(model.config).prepare(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.choose_trained(model)
        return make_policy(model, processor.tokenizer, forward_by=forward_by)

    def empty_policy(self, processor: Any, *, forward_by: str = "shared_prefix") -> Policy:
        """Builds the policy without weights; `Policy.weights` reads them later, in parts.

        Parameters are on the meta device, so that no rank ever has a complete model. Everything
        else is as in `load_policy`.

        Raises:
            ValueError: as `load_model`.
        """
        folder = self.folder()
        config = read_config(folder)
        family = family_of(config)
        files = check_weight_files(folder)
        model = empty_model(
            family.model_class, config, dtype=self.dtype, attention=self.attn_implementation
        )
        model.generation_config = _generation_config(model, folder)
        family.prepare(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.choose_trained(model)
        policy = make_policy(model, processor.tokenizer, forward_by=forward_by)
        seed = self.adapter.seed if isinstance(self.adapter, LoRA) else 0
        policy.weights = WeightReader(files, model, adapter_seed=seed)
        return policy

    def choose_trained(self, model: Any) -> None:
        """Freezes the configured parts and adds the configured adapters."""
        freeze_parts(
            model,
            vision=self.freeze_vision,
            merger=self.freeze_merger,
            language=self.freeze_language,
        )
        self.adapter(model)


def load_model(folder: Path, dtype: torch.dtype, attn_implementation: str) -> Any:
    """Loads the weights of a supported family from a local folder.

    Raises:
        ValueError: the folder's model type is not supported, or its weights are not safetensors,
            are incomplete, or differ from their checksums.
    """
    family = family_of(read_config(folder))
    check_weight_files(folder)
    try:
        model, found = family.model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # untrusted files can make libraries raise anything
        raise ValueError(
            f"model.path: no weights could be loaded from {folder}: {one_line(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"model.path: the weights in {folder} lack {len(missing)} of the model's tensors, "
            f"e.g. {missing[0]}"
        )
    model.generation_config = savable_generation_config(model.generation_config, folder)
    return model.eval()


def _generation_config(model: Any, folder: Path) -> GenerationConfig:
    config = model.generation_config
    if (folder / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return savable_generation_config(config, folder)


def make_policy(model: Any, tokenizer: Any, *, forward_by: str) -> Policy:
    """Wraps a model as a policy; the special token ids are read from model and tokenizer."""
    vocabulary = tokenizer.get_vocab()
    vision_tokens = family_of(model.config).vision_tokens
    eos = model.generation_config.eos_token_id
    eos_ids = [eos] if isinstance(eos, int) else list(eos or [])
    if any(not isinstance(token, int) or not 0 <= token < len(tokenizer) for token in eos_ids):
        raise ValueError(
            f"model.path: eos_token_id of generation_config.json: expected ids below "
            f"{len(tokenizer)}, got {eos_ids}"
        )
    if tokenizer.eos_token_id not in eos_ids:
        eos_ids.append(tokenizer.eos_token_id)
    return Policy(
        model=model,
        suppressed_ids=[vocabulary[token] for token in vision_tokens if token in vocabulary],
        eos_ids=eos_ids,
        pad_id=int(tokenizer.pad_token_id),
        forward_by=forward_by,
    )


def _check_attention(attn_implementation: str, dtype: str) -> None:
    known = ("sdpa", "eager", "flash_attention_2")
    if attn_implementation not in known:
        raise ValueError(
            f"model.attn_implementation: expected one of {known}, got {attn_implementation!r}"
        )
    if attn_implementation == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        key, problems = "model.attn_implementation: flash_attention_2", []
        if not is_flash_attn_2_available():
            problems.append(
                f"{key} needs a CUDA GPU and the package flash-attn: run pip install "
                "'tvg[flash-attn]' (needs nvcc), or set model.attn_implementation=sdpa"
            )
        if dtype == "float32":
            problems.append(f"{key} cannot compute in model.dtype=float32: use bfloat16")
        refuse(problems)
