"""Studies that travel inside the package."""
