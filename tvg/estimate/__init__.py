"""Estimates the memory and disk space of a run, without weights or videos."""
