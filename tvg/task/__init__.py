"""Tasks; each defines its chat messages, its parsing of answers, and its metrics."""
