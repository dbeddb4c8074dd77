"""Sphinx configuration: `make docs` executes the tutorial and writes docs/_build/html."""

import os
import re
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

import unet_diffusion

ROOT = Path(__file__).parents[1]
project = "unet_diffusion"
copyright = "the authors of unet_diffusion"
version = release = unet_diffusion.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "lab", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "unet_diffusion"
html_show_sphinx = False
html_copy_source = False
templates_path = []

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds per cell
nb_output_stderr = "remove"  # remarks of libraries
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # Lightning's refer to its own documentation
autodoc_default_options = {"members": True, "show-inheritance": True, "undoc-members": True}

TUTORIAL_STEPS = os.environ.get("TUTORIAL_STEPS")  # shortens the trainings, for CI


def shorten_trainings(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replaces the number of steps in a tutorial."""
    if docname.startswith("tutorial/") and TUTORIAL_STEPS:
        pattern = r"^((?:TOY_)?STEPS) = \d+"
        source[0] = re.sub(pattern, rf"\1 = {TUTORIAL_STEPS}", source[0], flags=re.MULTILINE)


def yaml_rows(text: str) -> list[tuple[str, str, str]]:
    """(dotted key, default, comment) of each key of a config file; not of its defaults list."""
    rows, path, indents = [], [], []
    for line in text.splitlines():
        match = re.match(r"( *)([\w.]+):(?: +([^#]*?))? *(?:# (.*))?$", line)
        if not match or line.startswith("#"):
            continue
        indent, key, value, comment = len(match[1]), match[2], match[3] or "", match[4] or ""
        while indents and indents[-1] >= indent:
            indents.pop(), path.pop()
        indents.append(indent), path.append(key)
        if path[0] not in ("defaults", "hydra") and (value or comment):
            rows.append((".".join(path), value, comment))
    return rows


def config_section(file: Path, prefix: str = "") -> str:
    """A table of the keys of a config file."""
    text = file.read_text()
    comments = re.match(r"(?:# @package _global_\n)?((?:#.*\n)*)", text)
    heading = f"### `{prefix}{file.stem}`\n\n"
    lines = [line.lstrip("# ") for line in comments[1].splitlines()]
    heading += (
        " ".join(f"`{each}`" if each.startswith("python") else each for each in lines) + "\n\n"
    )

    def cell(value: str, code: bool = False) -> str:
        escaped = value.replace("|", "\\|")
        return f"`{escaped}`" if code and value else escaped.replace("<", "\\<").replace("*", "\\*")

    rows = [
        f"| {cell(key, True)} | {cell(value, True)} | {cell(comment)} |"
        for key, value, comment in yaml_rows(text)
    ]
    table = "| key | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
    return heading + (table if rows else "")


def write_config_reference(app: Sphinx) -> None:
    """Generates reference/config.md from conf/, so that it cannot be outdated."""
    conf = ROOT / "conf"
    text = "# Config groups and keys\n\nGenerated from the files in `conf/`.\n\n## Scripts\n\n"
    text += "".join(config_section(file) for file in sorted(conf.glob("*.yaml")))
    for group in sorted(folder for folder in conf.iterdir() if folder.is_dir()):
        text += f"## `{group.name}`\n\n"
        files = sorted(group.glob("*.yaml"))
        text += "".join(config_section(file, f"{group.name}=") for file in files)
    target = ROOT / "docs" / "reference" / "config.md"
    if not target.is_file() or target.read_text() != text:
        target.write_text(text)


def write_api_reference(app: Sphinx) -> None:
    """Generates reference/api.md: a section for each module."""
    package = ROOT / "src" / "unet_diffusion"
    text = "# Python API\n\nOne section per module, from the docstrings.\n\n"
    without_gradio = ("playground", "photo_tabs", "offline_gradio")
    order = ["models", "diffusion", "samplers", "objectives", "restoration", "data"]
    order += ["experiment", "runs", "generation", "evaluation", "training", "commands", ""]
    files = [file for folder in order for file in sorted((package / folder).glob("*.py"))]
    for file in files:
        if file.stem not in ("__init__", "cli", *without_gradio):
            module = ".".join(file.relative_to(package.parent).with_suffix("").parts)
            short = module.removeprefix("unet_diffusion.")
            text += f"## {short}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n\n"
    target = ROOT / "docs" / "reference" / "api.md"
    if not target.is_file() or target.read_text() != text:
        target.write_text(text)


def visit_math(self, node: nodes.math) -> None:
    """MathML, which browsers show without a script or a font from elsewhere."""
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def visit_displaymath(self, node: nodes.math_block) -> None:
    mathml = latex2mathml.converter.convert(node.astext(), display="block")
    self.body.append(f'<div style="margin: 1em 0; overflow-x: auto">{mathml}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.connect("source-read", shorten_trainings)
    app.connect("builder-inited", write_config_reference)
    app.connect("builder-inited", write_api_reference)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))


html_math_renderer = "mathml"
