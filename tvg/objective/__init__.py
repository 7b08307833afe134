"""Losses composed of core functions; they take tensors and return a `LossOutput`."""
