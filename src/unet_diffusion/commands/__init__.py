"""The commands: each module has a function of its name, and the schema of its arguments."""
