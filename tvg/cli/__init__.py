"""Entry points of the commands. They import only Hydra and `tvg.config` at the start.

`--help` and most config errors, such as misspelt keys, are therefore handled without importing
torch.
"""
