"""Fixtures for tests of runs that are logged to MLflow."""

from helpers.tracked_runs import finished_run, fit, store, tiny_grpo

__all__ = ["finished_run", "fit", "store", "tiny_grpo"]
