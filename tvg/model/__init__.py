"""Loads checkpoints, freezes parts of a model, and defines the policy that scores completions."""
