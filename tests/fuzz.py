"""Malformed overrides, image files and run directories: `python tests/fuzz.py --examples 300`.

Every example must end in success or in an error for the user, and must not run code from a file.
"""

import argparse
import contextlib
import functools
import io
import math
import os
import resource
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import torch
import yaml
from helpers import CONF, ROOT, SMALL, Malicious, choices, composed
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from unet_diffusion.commands.train import train
from unet_diffusion.data.cache import resize
from unet_diffusion.data.sources import read_image
from unet_diffusion.experiment.compose import compose
from unet_diffusion.runs.records import Metrics
from unet_diffusion.runs.run import Run

Draw = Callable[[st.SearchStrategy[Any]], Any]
CANARY = "canary"  # created in the working directory by code in a malformed file, if it runs

# Override lists

BASE = {
    "train": (*SMALL, "data=fashion_mnist_mini"),
    "sample": ("run=run", "num_samples=2", "output=new"),
    "denoise": ("run=run", "input=photo.png", "output=new"),
    "evaluate": ("run=run", "num_samples=0", "noise_levels=[0.5]", "output=new"),
    "report": ("runs=run", "output=new"),
    "export": ("run=run", "output=new"),
}
VALUES = ["", "'a b'", "a b", "'${seed}'", "'a\\nb'", "x" * 300, "1" + "0" * 30]
VALUES += """
    null true auto abc -1 0 1 2 3 32 0.5 -0.5 1.5 1e-9 1e9 nan inf 999999999999 0x10 1_000 08
    [] {} [1,2] [[]] [0.1,null] [16,32] {a:1} {a:{b:[c]}} a=b ' : \\ é .. /dev/null/x ~nobody/x
    ${seed} ${missing} ${.x} ${name}${name} ${oc.env:HOME} ${oc.create:{a:1}} ${ ??? 1,2 range(1,3)
""".split()  # noqa: SIM905
LIMITED = {
    "trainer.devices": ("abc", "0", "[]", "-5", "null", "1.5"),  # others start processes
    "trainer.strategy": ("abc", "null", "3", "[]"),
    "speed.compile": ("abc", "null", "3"),  # the compiler takes minutes
    "data": ("image_folder", "mnis", "null", "", "[a]"),  # others are large
    "experiment": ("01_lesson", "06_class_conditional", "7", "null", "[a]"),
    "accelerator": ("cpu", "gp", "null", ""),
    "num_samples": ("-1", "0", "3", "abc", "null", "1e3", "[]"),
}
GROUPS = {folder.name: choices(folder.name) for folder in CONF.iterdir() if folder.is_dir()}


def keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of a config; not groups, and not debug, which shows tracebacks."""
    items = node.items() if isinstance(node, dict) else ()
    children = [child for key, value in items for child in keys(value, f"{prefix}{key}.")]
    return [prefix + key for key, _ in items if key not in ("debug", *GROUPS)] + children


@functools.cache
def keys_of(script: str) -> list[str]:
    """Dotted keys of the config of a script."""
    found = keys(OmegaConf.to_container(compose(script, BASE[script])))
    return [key for key in found if not key.startswith("hydra")]


@st.composite
def wrong_override(draw: Draw, script: str) -> str:
    kind = draw(st.sampled_from(["value"] * 5 + ["choice", "choice", "typo", "prefix", "text"]))
    if kind == "text":
        return draw(st.text("ab1é猫.=,:+~@/[]{}()'\"${}\\ ", min_size=1, max_size=20))
    if kind == "choice":
        group = draw(st.sampled_from(sorted(GROUPS)))
        wrong = (GROUPS[group][0][:-1], "[a,b]", "null", "")
        return f"{group}={draw(st.sampled_from(LIMITED.get(group, (*GROUPS[group], *wrong))))}"
    key = draw(st.sampled_from(keys_of(script)))
    value = draw(st.sampled_from(LIMITED.get(key, VALUES)))
    if kind == "typo":
        at = draw(st.integers(0, len(key) - 1))
        letter = draw(st.sampled_from(("", "x", ".", "/", "@", " ")))
        return f"{key[:at]}{letter}{key[at + 1 :]}={value}"
    if kind == "prefix":
        forms = "+{}={}", "++{}={}", "~{}", "~{}={}", "{}", "+{}.x={}", "{}._target_={}", "{}@x={}"
        return str(draw(st.sampled_from(forms))).format(key, value)
    return f"{key}={value}"


def override_lists(draw: Draw, run: Path) -> str:
    """Runs a script with one to three wrong overrides: success, or exit status 2 and one line."""
    script = draw(st.sampled_from(["train"] * 5 + sorted(BASE)))
    wrong = draw(st.lists(wrong_override(script), min_size=1, max_size=3))
    last = ["trainer.fast_dev_run=true"] if script == "train" else []
    argv = [f"{script}.py", *BASE[script], *wrong, *last]
    shutil.copytree(run, "run")
    Image.new("L", (16, 16), 90).save("photo.png")
    status, errors = 0, io.StringIO()
    quiet = contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO())
    with mock.patch("sys.argv", argv), mock.patch.dict(os.environ), quiet[0], quiet[1]:
        try:
            runpy.run_path(str(ROOT / "scripts" / argv[0]), run_name="__main__")
        except SystemExit as error:
            status = int(error.code or 0)
    printed = errors.getvalue()
    num_errors = sum(line.startswith("error: ") for line in printed.splitlines())
    assert (status, num_errors, "Traceback" in printed) in ((0, 0, False), (2, 1, False)), printed
    return "error" if status else "success"


# Image files

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "I;16", "I", "F", "CMYK", "YCbCr", "LAB", "HSV")
SIZES = ((16, 16), (17, 23), (1, 1), (1, 300), (3000, 1), (64, 48))
HEADERS = (b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0", b"BM", b"\xff\xd8\xff", b"RIFF", b"%!PS")


def damaged(draw: Draw, content: bytes) -> bytes:
    size = len(content)
    at = draw(st.one_of(st.integers(0, min(60, size)), st.integers(0, size)))
    new = draw(st.binary(max_size=8))
    changed = content[:at] + new + content[at + len(new) :]
    other_format = bytes(draw(st.sampled_from(HEADERS))) + content[8:]
    return draw(st.sampled_from((content, content[:at], changed, changed, other_format, new)))


def image_files(draw: Draw, run: Path) -> str:
    """Reads and resizes an image file."""
    mode, size, form = (draw(st.sampled_from(each)) for each in (MODES, SIZES, FORMATS))
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = draw(st.sampled_from((1, 3, 6, 8, 0, 99)))
    try:
        Image.new(mode, size, 1 if len(mode) == 1 else None).save(buffer, form, exif=exif)
    except (OSError, ValueError, TypeError, KeyError):  # not in this format
        Image.effect_noise(size, 60).convert("RGB").save(buffer, form)
    path = Path(draw(st.sampled_from(("photo.png", "a=b,c.JPEG", "Gärten 猫", "a\nb.txt", "%s"))))
    path.write_bytes(damaged(draw, buffer.getvalue()))

    try:
        image = read_image(path)
    except (ValueError, OSError):
        return "error"
    for channels, target in ((1, (8, 8)), (3, (5, 12))):
        resized = resize(image[None], target, channels)
        assert (resized.shape, resized.dtype) == ((1, channels, *target), torch.uint8)
    return "success"


# Run directories

FOREIGN: list[Any] = """
    os.mkdir builtins.eval torch.hub.load functools.partial unet_diffusion.runs.run.torch.hub.load
    unet_diffusion.runs.checkpoints.load_checkpoint unet_diffusion.models.unet.UNet . a..b
""".split()  # noqa: SIM905
ODD: list[Any] = ["x" * 3000, 10**30, None, True, 0, -1, 7, 0.5, 1e300, math.nan, "", "é", "a\nb"]
ODD += ["/dev/zero", "${seed}", "${oc.env:HOME}", [], {}, [1, 2], [[[]]], {"a": {"b": 1}}, [None]]
ODD += yaml.safe_load(f"""
    - {{_target_: os.mkdir, _args_: [{CANARY}]}}
    - {{_target_: os.mkdir, path: {CANARY}}}
    - {{_target_: builtins.eval, _args_: ["__import__('os').mkdir('{CANARY}')"]}}
    - {{_target_: subprocess.Popen, args: [mkdir, {CANARY}], _recursive_: false}}
    - {{_target_: unet_diffusion.models.unet.UNet, _partial_: true}}
""")
YAML = f"""
x: !!python/object/apply:os.mkdir [{CANARY}]
x: !!python/object/new:os.mkdir {{args: [{CANARY}]}}
model: {{_target_: "\\x6fs.mkdir", _args_: [{CANARY}]}}
name: "\\x24{{oc.env:HOME}}"
<<: {{seed: 3}}
? [a, b]
null: 3
x: 2026-01-01
x: !!binary aGVsbG8=
x: '
data: ???
---
""".splitlines()
YAML += ["\t", "x: \ufeff", "x: " + "[" * 1000, "x: " + "{a: " * 80 + "}" * 80]
YAML += ["a0: &a0 x\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 50))]


def change_config(draw: Draw, run: Path) -> None:
    """A value of the config is replaced or removed, mostly of the parts that are instantiated."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    parts = ("model", "schedule", "prediction", "data", "sampler", "recorded")
    node, key = config, draw(st.sampled_from(parts))
    while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 4)):
        node = node[key]
        key = draw(st.sampled_from(list(node if isinstance(node, dict) else range(len(node)))))
    node[key] = draw(st.sampled_from(FOREIGN if key == "_target_" else ODD))
    if isinstance(node, dict) and draw(st.integers(0, 5)) == 0:
        del node[key]
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def add_yaml(draw: Draw, run: Path) -> None:
    path = run / "config.yaml"
    lines = draw(st.permutations([path.read_text(), draw(st.sampled_from(YAML))]))
    path.write_text("\n".join(lines))


def damage_file(draw: Draw, run: Path) -> None:
    names = ("config.yaml", "overrides.yaml", "metrics.json", "checkpoints/best.ckpt")
    path = run / draw(st.sampled_from(names))
    path.write_bytes(damaged(draw, path.read_bytes()))


def change_checkpoint(draw: Draw, run: Path) -> None:
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    name = draw(st.sampled_from(sorted(state)))
    odd = [torch.zeros(3, 3), torch.zeros(1).expand(10**9), torch.zeros(4).to_sparse()]
    odd += [Malicious(CANARY), state[name] * math.nan, state[name].to(torch.bool)]
    odd += [3, None, "a", [1.0], {}]
    places = ((content, "state_dict"), (content, "x"), (state, name), (state, "denoiser.x"))
    place, key = draw(st.sampled_from(places))
    place[key] = draw(st.sampled_from(odd))
    content = draw(st.sampled_from([content] * 10 + odd))
    torch.save(content, path, _use_new_zipfile_serialization=draw(st.booleans()))


def run_directories(draw: Draw, run: Path) -> str:
    """Opens a run directory and loads its denoiser, metrics and overrides."""
    copy = Path(shutil.copytree(run, "run"))
    changes = (change_config, add_yaml, damage_file, change_checkpoint)
    draw(st.sampled_from(changes))(draw, copy)
    try:
        opened = Run.open(copy)
        assert isinstance(opened.metrics, Metrics | None)
        assert isinstance(opened.overrides, list)
        opened.load_denoiser()
    except (ValueError, OSError):
        return "error"
    return "success"


TARGETS = (override_lists, image_files, run_directories)


def fuzz(target: Callable[[Draw, Path], str], run: Path, seed: int, examples: int) -> Counter[str]:
    """Runs a target with random input; returns the number of successes and errors."""
    outcomes: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(hypothesis.settings.get_profile("ci"), max_examples=examples)
    @hypothesis.given(st.data())
    def example(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            outcomes[target(data.draw, run)] += 1
            assert not list(Path().rglob(CANARY)), "code in a file was run"

    example()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=300, help="number for each target")
    parser.add_argument("--target", default="", help="part of the name of one target")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for limit, size in ((resource.RLIMIT_DATA, 6 << 30), (resource.RLIMIT_FSIZE, 64 << 20)):
        resource.setrlimit(limit, (size, size))  # instead of filling memory and disk
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNET_DIFFUSION_CACHE"] = f"{folder}/cache"  # not the user's
        run = Path(folder) / "run"
        train(composed(*SMALL, "trainer.max_steps=2", f"run_dir={run}"))
        for target in (each for each in TARGETS if arguments.target in each.__name__):
            outcomes = fuzz(target, run, arguments.seed, arguments.examples)
            print(f"{target.__name__}: {dict(outcomes)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
