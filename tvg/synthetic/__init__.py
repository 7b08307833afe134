"""Drawn videos with annotations, and tiny checkpoints: a whole run without downloads."""
