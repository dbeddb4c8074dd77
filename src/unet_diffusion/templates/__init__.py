"""The Jinja templates of reports, model cards and summaries."""

import re

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("unet_diffusion"),
    autoescape=lambda name: name is not None and ".html" in name,
    trim_blocks=True,
    lstrip_blocks=True,
)


def escape_markdown(text: str) -> str:
    """Escapes what Markdown would interpret; an underscore inside a word is literal."""
    return re.sub(r"([\\|`*<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


TEMPLATES.filters["escape_markdown"] = escape_markdown
