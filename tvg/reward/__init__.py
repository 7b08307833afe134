"""Rewards of completions: one file each, and their weighted sum."""
