"""Engines that sample completions from the policy."""
