"""Fixtures for tests of callbacks in a tracked run."""

from helpers.tracked_runs import finished_run, fit, store, tiny_grpo

__all__ = ["finished_run", "fit", "store", "tiny_grpo"]
