"""Silences irrelevant warnings from libraries."""

from __future__ import annotations

import logging
import sys
import warnings

# Patterns of the ignored warnings, and why they do not apply here.
_IGNORED = (
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated",  # Lightning's call
    r"It is recommended to use `self\.log\('val/.*sync_dist=True",  # ranks gather predictions
    "Using ModelCheckpoint with manual optimization",  # saving after the step is intended
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
    "The given NumPy array is not writable",
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "Precision .* is not supported by the model summary",
    r"Found \d+ module\(s\) in eval mode",  # the frozen reference
)


# DeepSpeed logs this on machines without a GPU. Saving a model imports DeepSpeed even if unused.
_NO_ACCELERATOR = "Setting accelerator to CPU"


def quiet_libraries() -> None:
    """Silences tips and deprecations between libraries and, without a terminal, progress bars."""
    for message in _IGNORED:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_of_use)
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def _is_of_use(record: logging.LogRecord) -> bool:
    return _NO_ACCELERATOR not in record.getMessage()
