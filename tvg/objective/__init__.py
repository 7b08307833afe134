"""Losses composed of functions of `tvg.core`; each maps tensors to a `LossOutput`."""
