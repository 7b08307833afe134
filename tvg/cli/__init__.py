"""The commands: thin entry points that import Hydra and `tvg.config`; the work is imported late.

`--help`, a misspelt key and every rule that needs no tensor answer without torch.
"""
