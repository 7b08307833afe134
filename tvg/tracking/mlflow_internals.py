"""All uses of undocumented MLflow modules."""

from __future__ import annotations

from typing import Any


def with_context_tags(tags: dict[str, str]) -> dict[str, str]:
    """Adds the tags that `mlflow.start_run` would add: user, source and git commit."""
    from mlflow.tracking.context.registry import resolve_tags

    found: dict[str, str] = resolve_tags(tags)
    return found


def start_system_monitor(run_id: str, *, tracking_uri: str, interval_s: float) -> Any:
    """Starts a thread that logs `system/*` metrics to a run, until `finish()` of the result.

    MLflow's public setting works only for the active run of the process, which Lightning's logger
    does not use.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=interval_s, resume_logging=True, tracking_uri=tracking_uri
    )
    monitor.start()
    return monitor
