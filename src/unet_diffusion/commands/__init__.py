"""The commands: a module for each, with a function of its name and the schema of its arguments."""
