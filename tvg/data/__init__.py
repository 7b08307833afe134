"""Turns annotation and video files into examples, clips and batches."""
