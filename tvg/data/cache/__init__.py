"""Stores clips on disk, so that later epochs do not decode videos again.

`key` identifies entries, `store` keeps them with checksums, and `frames` offers both behind the
interface of a clip loader.
"""
