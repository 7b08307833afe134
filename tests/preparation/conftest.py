"""Fixtures for tests that read video files."""

from helpers.videos import bad_files, videos

__all__ = ["bad_files", "videos"]
