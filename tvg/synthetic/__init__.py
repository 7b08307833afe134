"""Generates videos with annotations and tiny checkpoints, for complete runs without downloads."""
