"""Implements `tvg-prepare`: checks a dataset's annotations and videos, and fills its cache."""
