"""Hostile config nodes: building any of them would run code or write a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any


class _Touches:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.marker, "ran"))


def pickle_that_writes(path: Path, marker: Path) -> Path:
    """Writes a pickle to `path` that writes `marker` when it is loaded."""
    path.write_bytes(pickle.dumps(_Touches(marker)))
    return path


def script_that_writes(path: Path, marker: Path) -> Path:
    """Writes a Python file to `path` that writes `marker` when it is imported or run."""
    path.write_text(f"import pathlib\npathlib.Path({str(marker)!r}).write_text('ran')\n")
    return path


def hostile_nodes(folder: Path, marker: Path) -> dict[str, Any]:
    """Returns nodes by name that would write `marker` if built; their files are in `folder`."""
    pickled = str(pickle_that_writes(folder / "payload.pt", marker))
    script = str(script_that_writes(folder / "payload.py", marker))
    source, to = script, str(marker)
    code = f"open({to!r}, 'w').write('ran')"
    words = ["touch", to]

    def call(target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"_target_": target, **({"_args_": list(args)} if args else {}), **kwargs}

    nodes = {
        "torch.load": call("torch.load", f=pickled, weights_only=False),
        "torch.jit.load": call("torch.jit.load", pickled),
        "torch.hub.load": call("torch.hub.load", str(folder), "payload", source="local"),
        "pickle.loads": call(
            "pickle.loads", call("pathlib.Path.read_bytes", call("pathlib.Path", pickled))
        ),
        "pickle.load": call("pickle.load", call("builtins.open", pickled, "rb")),
        "numpy.load": call("numpy.load", pickled, allow_pickle=True),
        "joblib.load": call("joblib.load", pickled),
        "runpy.run_path": call("runpy.run_path", script),
        "runpy.run_module": call("runpy.run_module", "payload"),
        "importlib.import_module": call("importlib.import_module", "payload"),
        "builtins.exec": call("builtins.exec", code),
        "builtins.eval": call("builtins.eval", code),
        "builtins.compile": call("builtins.compile", code, "a", "exec"),
        "builtins.open": call("builtins.open", to, "w"),
        "builtins.__import__": call("builtins.__import__", "payload"),
        "os.system": call("os.system", f"touch {to}"),
        "os.popen": call("os.popen", f"touch {to}"),
        "os.mkdir": call("os.mkdir", to),
        "os.symlink": call("os.symlink", source, to),
        "os.link": call("os.link", source, to),
        "os.rename": call("os.rename", source, to),
        "os.putenv": call("os.putenv", "TVG_MARK", "ran"),
        "subprocess.run": call("subprocess.run", words),
        "subprocess.Popen": call("subprocess.Popen", words),
        "subprocess.check_output": call("subprocess.check_output", words),
        "pathlib.Path.write_text": call("pathlib.Path.write_text", call("pathlib.Path", to), "ran"),
        "pathlib.Path.touch": call("pathlib.Path.touch", call("pathlib.Path", to)),
        "shutil.copy": call("shutil.copy", source, to),
        "shutil.move": call("shutil.move", source, to),
        "shutil.rmtree": call("shutil.rmtree", str(folder / "payload.py")),
        "tempfile.mkdtemp": call("tempfile.mkdtemp", dir=str(folder)),
        "urllib.request.urlretrieve": call("urllib.request.urlretrieve", f"file://{source}", to),
        "logging.FileHandler": call("logging.FileHandler", to),
        "tvg.core.text_files.write_text": call(
            "tvg.core.text_files.write_text", path=to, text="ran"
        ),
        "tvg.core.text_files.write_json": call("tvg.core.text_files.write_json", path=to, value={}),
        "tvg.synthetic.tiny.write_tiny_checkpoint": call(
            "tvg.synthetic.tiny.write_tiny_checkpoint", folder=to, family="qwen2_5_vl", seed=0
        ),
        "hydra.utils.call": call("hydra.utils.call", call("os.mkdir", to)),
        "omegaconf.OmegaConf.save": call("omegaconf.OmegaConf.save", {"a": 1}, to),
        "functools.partial": call("functools.partial", call("os.mkdir", to)),
        "safetensors.torch.save_file": call("safetensors.torch.save_file", {}, to),
        "a partial": {
            **call("pathlib.Path.write_text", call("pathlib.Path", to), "ran"),
            "_partial_": True,
        },
        "a list": [call("os.mkdir", to)],
        "nested in a known target": {
            "_target_": "tvg.core.parsing.parse_answer",
            "_partial_": True,
            "text": call("os.mkdir", to),
        },
        "an interpolated target": {"_target_": "${oc.env:TVG_NO_SUCH,os.mkdir}", "path": to},
        "a resolver": "${eval:" + code + "}",
        "a reader of files": "${oc.decode:${oc.env:HOME}}",
    }
    return nodes
