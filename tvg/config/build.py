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

    For a node without a `_target_`, returns a dict of its children's objects. `kwargs` are passed
    to the constructor unchanged, whereas `instantiate` would copy dicts and turn dataclasses into
    configs.

    Raises:
        ConfigError: building raised a ValueError or an OSError, or a target cannot be found or
            called. The message names the config key. Other errors are re-raised with a note.
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
    """Returns the error inside Hydra's as a ConfigError, or with a note if it is unexpected."""
    cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    # Hydra names the node that failed, which may be below the requested one.
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
    """Prepends the key to the message, unless it already begins with a key of the same group."""
    group = path.split(".")[0]
    return message if message.startswith((f"{path}:", f"{group}.")) else f"{path}: {message}"


def _path(node: Any) -> str:
    if OmegaConf.is_config(node):
        return full_key(node) or "config"
    return str(node.get("_target_", "config")) if isinstance(node, dict) else "config"
