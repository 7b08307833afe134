"""Records a checkpoint's prompt and frame sampling, and builds both again from the record.

A record contains plain values of known options and names no code. An untrusted checkpoint can
therefore only choose the prompt and the frames of its model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf

from tvg.config.build import build
from tvg.config.compose import compose_option
from tvg.config.errors import ConfigError
from tvg.config.record_file import RECORD_FILE, read_record, write_record
from tvg.config.record_options import (
    LATER_PROMPT_OPTIONS,
    LOADER_OPTIONS,
    PARSERS,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
    check_options,
)
from tvg.model.folder_files import check_is_checkpoint

if TYPE_CHECKING:
    from tvg.task.grounding import GroundingTask

log = logging.getLogger(__name__)

PROMPT, LOADER = "prompt", "data/clip"  # sections of a record: config groups
RECORDED_KEYS = {PROMPT: "prompt", LOADER: "data.clip"}  # group -> config key
FORMER_SECTIONS = {"data/loader": LOADER}  # of exports made before 2026-11-29
AS_RECORDED = "recorded"
OWN = "own:"  # prefix of a dotted path to user code; a record mentions it, but nothing imports it
TASK = "tvg.task.grounding.GroundingTask"
CLIP_LOADER = "tvg.data.video.clip.ClipLoader"
FRAME_SAMPLING = "tvg.data.video.sampling.FrameSampling"
FORMER_TARGETS = {  # in records made before 2026-11-28, which named classes
    CLIP_LOADER: "tvg.data.clip.ClipLoader",
    FRAME_SAMPLING: "tvg.data.sampling.FrameSampling",
}


def record_text(cfg: DictConfig) -> str:
    """Returns a run's prompt and clip sampling as YAML, for `RECORD_FILE` in its export."""
    prompt, loader = (
        OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)
        for key in RECORDED_KEYS.values()
    )
    return write_record({PROMPT: _prompt_record(prompt), LOADER: _loader_record(loader)})


def _prompt_record(node: Any) -> dict[str, Any]:
    """Converts the prompt's config node to plain values without file or checkpoint names."""
    target = node.get("_target_")
    if target == f"{__name__}.{recorded_prompt.__name__}":
        found = _prompt_values(node["folder"], node["fallback"])
        changes = {k: v for k, v in node.items() if k in PROMPT_OPTIONS and v != AS_RECORDED}
        return {**found, **_with_parser_name(changes)}
    if target != TASK:
        return {"task": f"{OWN}{target}"}
    values = {name: node[name] for name in PROMPT_OPTIONS if name in node}
    if node.get("template_file") is not None:
        from tvg.task.template import read_template_file

        values["template"] = read_template_file(node["template_file"])
    return _with_parser_name(values)


def _with_parser_name(values: Mapping[str, Any]) -> dict[str, Any]:
    parser = values.get("parser")
    if not isinstance(parser, Mapping):
        return dict(values)
    names = {target: name for name, target in PARSERS.items()}
    is_plain = set(parser) <= {"_target_", "_partial_"}
    target = str(parser.get("_target_"))
    return {**values, "parser": names.get(target, OWN + target) if is_plain else OWN + target}


def _loader_record(node: Any) -> dict[str, Any]:
    """Converts the clip loader's config node to plain values."""
    target = node.get("_target_")
    if target == f"{__name__}.{recorded_loader.__name__}":
        found = _loader_values(node["folder"], node["fallback"])
        timeout_s = node["timeout_s"]
        return found if timeout_s == AS_RECORDED else {**found, "timeout_s": timeout_s}
    if target != CLIP_LOADER or node["sampling"].get("_target_") != FRAME_SAMPLING:
        return {"loader": f"{OWN}{target}"}
    return {
        "sampling": {k: v for k, v in node["sampling"].items() if k in SAMPLING_OPTIONS},
        **{name: node[name] for name in LOADER_OPTIONS if name in node},
    }


def recorded_loader(
    *, folder: str | None, fallback: str, timeout_s: float | Literal["recorded"] | None
) -> Any:
    """Builds the clip loader that the checkpoint in `folder` was trained with, without its decoder.

    Args:
        folder: checkpoint folder; None if there is none yet.
        fallback: option of `data/clip` for checkpoints without a record, such as released ones. For
            checkpoints with a record, it provides the settings that are not recorded.
        timeout_s: as for `ClipLoader`, or "recorded".

    Raises:
        ConfigError: the folder or the fallback does not exist, or the record is not valid.
    """
    from tvg.data.video.sampling import FrameSampling

    values = _loader_values(folder, fallback)
    if timeout_s == AS_RECORDED:
        timeout_s = values["timeout_s"]
    try:
        sampling = FrameSampling(**values["sampling"])
    except ValueError as error:
        raise ConfigError(f"{folder}/{RECORD_FILE}: {LOADER}.sampling: {error}") from error
    return build(compose_option(LOADER, fallback), sampling=sampling, timeout_s=timeout_s)


def recorded_prompt(
    *,
    folder: str | None,
    fallback: str,
    system: str | None,
    video_first: bool | Literal["recorded"],
    lowercase: bool | Literal["recorded"],
    strip_period: bool | Literal["recorded"],
    query_blanks: str,
    parser: Callable[..., Any] | Literal["recorded"],
    rate_any_numbers: bool | Literal["recorded"],
    strict_answer: bool | Literal["recorded"],
    prefill: str | None,
    frame_times: str | None,
) -> GroundingTask:
    """Builds the prompt that the checkpoint in `folder` was trained with, or a variant of it.

    Args:
        folder: as for `recorded_loader`.
        fallback: option of `prompt` for checkpoints without a record.
        system: as for `GroundingTask`, or "recorded": the recorded value.
        video_first: as for `system`.
        lowercase: as for `system`.
        strip_period: as for `system`.
        query_blanks: as for `system`.
        parser: as for `system`.
        rate_any_numbers: as for `system`.
        strict_answer: as for `system`.
        prefill: as for `system`.
        frame_times: as for `system`.

    Raises:
        ConfigError: as for `recorded_loader`.
    """
    from tvg.task.grounding import GroundingTask

    settings = {
        "system": system,
        "video_first": video_first,
        "lowercase": lowercase,
        "strip_period": strip_period,
        "query_blanks": query_blanks,
        "parser": parser,
        "rate_any_numbers": rate_any_numbers,
        "strict_answer": strict_answer,
        "prefill": prefill,
        "frame_times": frame_times,
    }
    changes = {name: value for name, value in settings.items() if value != AS_RECORDED}
    values = {**_prompt_values(folder, fallback), **changes}
    values["parser"] = _parser(values.get("parser", "default"), folder)
    try:
        return GroundingTask(template_file=None, **values)
    except ValueError as error:
        raise ConfigError(f"{folder}/{RECORD_FILE}: {error}") from error


def _parser(parser: Any, folder: str | None) -> Any:
    """Returns the function for a name in `PARSERS`; returns functions unchanged."""
    if not isinstance(parser, str):
        return parser
    if parser in PARSERS:
        return build({"_target_": PARSERS[parser], "_partial_": True})
    where = f"{folder}/{RECORD_FILE}: {PROMPT}.parser"
    if parser.startswith(OWN):
        raise ConfigError(
            f"{where}: this checkpoint was trained with a custom parser, "
            f"{parser.removeprefix(OWN)!r}, which the checkpoint does not contain: choose one with "
            "prompt.parser={_target_:...,_partial_:true}"
        )
    raise ConfigError(f"{where}: expected one of {', '.join(PARSERS)}, got {parser!r}")


def _prompt_values(folder: str | None, fallback: str) -> dict[str, Any]:
    section = _section(folder, PROMPT, fallback)
    if section is None:
        node = OmegaConf.to_container(compose_option(PROMPT, fallback), resolve=True)
        values = _prompt_record(node)
        _refuse_own(values, "task", f"prompt.fallback={fallback}", "prompt=think")
        return values
    where = f"{folder}/{RECORD_FILE}: {PROMPT}"
    _refuse_own(section, "task", where, "prompt=think")
    section = _without_target(section, TASK, where)
    if section.pop("template_file", None) is not None:
        raise ConfigError(f"{where}.template_file: a record must not name files")
    if isinstance(section.get("parser"), dict):  # written by an older version
        node = section["parser"]
        targets = [t for t in PARSERS.values() if node == {"_target_": t, "_partial_": True}]
        if not targets:
            raise _names_code(f"{where}.parser", node)
        section = _with_parser_name(section)
    check_options(section, PROMPT_OPTIONS, where, optional=LATER_PROMPT_OPTIONS)
    return section


def _loader_values(folder: str | None, fallback: str) -> dict[str, Any]:
    section = _section(folder, LOADER, fallback)
    if section is None:
        node = OmegaConf.to_container(compose_option(LOADER, fallback), resolve=True)
        values = _loader_record(node)
        _refuse_own(values, "loader", f"data.clip.fallback={fallback}", "data/clip=qwen")
        return values
    where = f"{folder}/{RECORD_FILE}: {LOADER}"
    _refuse_own(section, "loader", where, "data/clip=qwen")
    section = _without_target(section, CLIP_LOADER, where)
    sampling = section.pop("sampling", None)
    if not isinstance(sampling, dict):
        raise ConfigError(f"{where}.sampling: expected a mapping, got {sampling!r}")
    sampling = _without_target(sampling, FRAME_SAMPLING, f"{where}.sampling")
    check_options(sampling, SAMPLING_OPTIONS, f"{where}.sampling", optional=set())
    check_options(section, LOADER_OPTIONS, where, optional=set())
    return {"sampling": sampling, **section}


def _section(folder: str | None, group: str, fallback: str) -> dict[str, Any] | None:
    """Returns a section of the record in a folder; None if there is no record."""
    if folder is None:
        return None
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        try:
            check_is_checkpoint(Path(folder))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        log.warning("%s contains no %s: using %s=%s", folder, RECORD_FILE, group, fallback)
        return None
    record = {FORMER_SECTIONS.get(name, name): value for name, value in read_record(path).items()}
    if group not in record:
        raise ConfigError(f"{path}: expected the key {group!r}, got {sorted(record)}")
    if unknown := sorted(set(record) - set(RECORDED_KEYS)):
        raise ConfigError(f"{path}: a record has no section {unknown[0]!r}")
    section = record[group]
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {group}: expected a mapping, got {section!r}")
    return section


def _without_target(node: dict[str, Any], target: str, where: str) -> dict[str, Any]:
    """Removes the `_target_` that versions before 2026-11-28 wrote; refuses all others."""
    if "_target_" in node and node["_target_"] not in (target, FORMER_TARGETS.get(target)):
        raise _names_code(where, node)
    if "_partial_" in node and ("_target_" not in node or node["_partial_"] is not True):
        raise _names_code(where, node)
    return {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}


def _names_code(where: str, node: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        f"{where}: a record must contain only values of known options, no code, "
        f"got _target_={node.get('_target_')!r}"
    )


def _refuse_own(section: Mapping[str, Any], key: str, where: str, example: str) -> None:
    own = section.get(key)
    if isinstance(own, str) and own.startswith(OWN):
        raise ConfigError(
            f"{where}: this checkpoint was trained with {own.removeprefix(OWN)!r}, which the "
            f"checkpoint does not contain: choose {example} or another option"
        )
