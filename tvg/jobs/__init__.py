"""Implements the commands: each job is a function of a composed config."""
