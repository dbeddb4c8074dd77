"""The one door between configs and objects; the only folder that knows Hydra and `_target_`."""
