"""The fixtures of tests that watch a tracked run."""

from helpers.tracked_runs import finished_run, fit, store, tiny_grpo

__all__ = ["finished_run", "fit", "store", "tiny_grpo"]
