"""Lightning callbacks that show, record and check a run, stop it early, or filter its samples."""
