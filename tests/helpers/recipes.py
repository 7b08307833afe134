"""Names of the shipped recipes: every experiment config that builds on `_published`."""

from __future__ import annotations

from tvg.config import CONF_DIR


def _recipes() -> list[str]:
    folder = CONF_DIR / "experiment"
    texts = {path.stem: path.read_text() for path in folder.glob("*.yaml")}
    found = {"_published"}
    while more := {
        name
        for name, text in texts.items()
        if name not in found and any(f"\n  - {base}\n" in text for base in found)
    }:
        found |= more
    return sorted(name for name in found if not name.startswith("_"))


RECIPES = _recipes()
