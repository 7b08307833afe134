"""Results for people: tables of metrics, records of filtering rounds, causes of weak rewards."""
