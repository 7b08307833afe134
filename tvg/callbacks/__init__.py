"""Lightning callbacks that show and record a run, and the MLflow logger that they write to."""
