"""Rewards of completions, one per file, and their weighted sum."""
