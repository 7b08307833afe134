"""Pure functions that every other package uses; they need only torch and the standard library."""
