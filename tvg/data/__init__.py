"""From annotation and video files to examples, clips and batches."""
