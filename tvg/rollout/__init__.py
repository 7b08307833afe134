"""Engines that sample completions, behind one interface."""
