"""Readable results: tables of metrics, records of filtering rounds, causes of weak rewards."""
