"""Losses made of core functions: tensors in, `LossOutput` out."""
