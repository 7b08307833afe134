"""Reads video files: frame times, sampling, decoding, and limits on time and memory."""
