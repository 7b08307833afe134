"""Clips kept on disk, so that no epoch decodes a video a second time.

`key` tells what decides an entry's content, `store` keeps entries that show every changed byte, and
`frames` gives both the interface of a clip loader.
"""
