"""Sends metrics, files and pictures to MLflow, TensorBoard and other loggers."""
