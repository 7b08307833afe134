"""Stores clips on disk, so that later epochs do not decode videos again.

`key` identifies entries, and `store` keeps them on disk with checksums. The caches in `frames` and
`features` use both and are called like a clip loader.
"""
