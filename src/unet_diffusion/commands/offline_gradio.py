"""Gradio without requests to other machines."""

import getpass
import os
import tempfile
from functools import partial
from unittest.mock import patch

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import
_user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # an id can have no name
os.environ.setdefault("GRADIO_TEMP_DIR", f"{tempfile.gettempdir()}/gradio-{_user}")
without_proxies = partial(patch.dict, os.environ, no_proxy="*")
with without_proxies():
    import gradio as gr

__all__ = ["gr", "without_proxies"]
