"""Training: the LightningModule, its callbacks, and the way from a config to a run directory."""
