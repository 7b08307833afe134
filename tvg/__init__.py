"""Reinforcement-learning post-training of video-language models for temporal video grounding."""

__version__ = "0.1.0"
