"""Pure functions (torch and the standard library only) that every other package builds on."""
