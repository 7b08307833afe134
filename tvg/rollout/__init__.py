"""Sampling engines for completions."""
