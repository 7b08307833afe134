"""The Lightning shell: modules, data module, checkpoints, evaluation."""
