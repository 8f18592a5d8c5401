"""Programs that use the package, each run with one command."""
