"""Lightning integration: modules, data modules, checkpoints and evaluation."""
