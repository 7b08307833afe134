"""Builds objects from config nodes."""

from __future__ import annotations

import functools
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from tvg.config.errors import ConfigError
from tvg.config.omegaconf_internals import full_key


def build(node: DictConfig | ListConfig | dict[str, Any], **kwargs: Any) -> Any:
    """Builds the object that a config node describes; containers in it become dicts and lists.

    A node without a `_target_` gives a dict of its children's objects. `kwargs` are passed to the
    constructor unchanged; `instantiate` would copy dicts and turn dataclasses into configs.

    Raises:
        ConfigError: building raised a ValueError or an OSError, or a target cannot be found or
            called; the message names the config key. Other errors are raised with a note.
    """
    path = _path(node)
    try:
        if not kwargs:
            return instantiate(node, _convert_="all")
        factory = instantiate(node, _convert_="all", _partial_=True)
        if not isinstance(node, ListConfig) and node.get("_partial_"):
            return functools.partial(factory, **kwargs)
        return factory(**kwargs)
    except InstantiationException as error:
        raise _readable(error, path) from error
    except (ConfigError, KeyboardInterrupt):
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(_with_path(str(error), path)) from error
    except Exception as error:
        error.add_note(f"while building {path}")
        raise


def _readable(error: InstantiationException, path: str) -> Exception:
    """Returns the user's error inside Hydra's; an unforeseen error gets a note."""
    cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    # Hydra names the node that failed, which may lie deeper than the one asked for.
    key = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else path
    if isinstance(cause, ConfigError):
        return cause
    if isinstance(cause, InstantiationException | ImportError | AttributeError):
        return ConfigError(f"{key}: {str(error).splitlines()[0]} {str(cause).splitlines()[-1]}")
    if isinstance(cause, ValueError | OSError):
        return ConfigError(_with_path(str(cause), key))
    assert isinstance(cause, Exception)
    cause.add_note(f"while building {key}")
    return cause


def _with_path(message: str, path: str) -> str:
    """Puts the key before the message, unless the message begins with a key of that node."""
    group = path.split(".")[0]
    return message if message.startswith((f"{path}:", f"{group}.")) else f"{path}: {message}"


def _path(node: Any) -> str:
    if OmegaConf.is_config(node):
        return full_key(node) or "config"
    return str(node.get("_target_", "config")) if isinstance(node, dict) else "config"
