"""Tasks: each owns its messages, its parsing and its report."""
