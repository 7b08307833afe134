"""The commands: thin entry points that import Hydra and `tvg.config`, and everything else late.

`--help`, a misspelt key and every rule that needs no tensor are handled without importing torch.
"""
