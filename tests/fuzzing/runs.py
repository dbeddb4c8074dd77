"""Malformed run folders: somebody else's, damaged, or made to do harm."""

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from fuzzing.case import MARK, RUNS, Case, Materials

_FOREIGN = (
    "os.system", "os.mkdir", "subprocess.Popen", "builtins.eval", "builtins.print", "torch.hub.load", "logging.FileHandler", "pathlib.Path",
    "unet_diffusion.saved_checkpoint.pickle.loads", "unet_diffusion.saved_checkpoint.load_checkpoint", "unet_diffusion.nothing.There", "unet_diffusion",
    "unet_diffusion.models.unet.UNet", "unet_diffusion.samplers.heun.Heun", "unet_diffusion.evaluation.drawings.FromFiles",
    "unet_diffusion.data.image_folder.ImageFolder", "unet_diffusion.training.averaging.EMA", "functools.partial", "", "a b", ".", 3, None,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**9, 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf"), "", "abc", "16", "é", "猫", "\x07",
    "a\nb", "$x$", "$\\frac", "${seed}", "${oc.env:HOME}", "../..", "/dev/zero", "x" * 3000, [], {}, [1, 2], [[[]]], {"a": {"b": 1}}, [None],
    {"_target_": "os.mkdir", "_args_": [MARK]}, {"_target_": "unet_diffusion.models.unet.UNet", "_partial_": True}, [16, 16], [8, 16], [2048, 2048],
)  # fmt: skip


_SHORT = ("++trainer.limit_val_batches=1", "++trainer.limit_test_batches=1", "callbacks.progress_bar.refresh_rate=0")


def malformed_run(rng: Random, materials: Materials, folder: Path) -> Case:
    """A command on a run folder with something wrong in it."""
    name = rng.choice(RUNS)
    run = folder / "runs" / name
    report = rng.random() < 0.25
    kinds = _OF_REPORTS if report else _KINDS
    changes = rng.sample(kinds, rng.choice((1, 1, 1, 2)))
    for change in sorted(changes, key=lambda each: each is _any_file):  # last: it can make a file too large to be read
        with contextlib.suppress(Exception):  # what an earlier change has damaged, a later one cannot
            change(rng, run)
    if report:
        return Case("report", [f"runs={rng.choice((f'runs/{name}', 'runs'))}"])
    where = rng.choice((f"runs/{name}", f"runs/{name}", f"runs/{name}/checkpoints/best.ckpt"))
    return rng.choice(
        (
            Case("sample", [f"run={where}", "num_images=2"]),
            Case("sample", [f"run={where}", "num_images=2", "checkpoint=last", "weights=raw"]),
            Case("denoise", [f"run={where}", f"input=runs/{RUNS[name == RUNS[0]]}/evaluations/1/drawn.png"]),
            Case("evaluate", [f"run={where}", "num_images=0", "levels=[0.5]"]),
            Case("evaluate", ["runs=runs", "num_images=0", "levels=[0.5]"]),
            Case("export", [f"run={where}"]),
            Case("train", [f"resume={where}", "trainer.max_steps=4", *_SHORT]),
        )
    )


def _config_value(rng: Random, run: Path) -> None:
    """A value of the config is another one, or gone, or of another type."""
    data = yaml.safe_load((run / "config.yaml").read_text())
    for _ in range(rng.choice((1, 1, 2))):
        node, key = _place(rng, data)
        if rng.random() < 0.2 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = rng.choice(_VALUES)
    (run / "config.yaml").write_text(yaml.safe_dump(data, allow_unicode=rng.random() < 0.5, sort_keys=False))


def _config_target(rng: Random, run: Path) -> None:
    """A class that does not belong there, as the part itself or inside it."""
    data = yaml.safe_load((run / "config.yaml").read_text())
    part = data[rng.choice(("data", "model", "noise", "schedule", "prediction", "weighting", "sampler"))]
    target = {"_target_": rng.choice(_FOREIGN)} | rng.choice(
        ({}, {"_args_": [MARK]}, {"_partial_": True}, {"_recursive_": False})
    )
    if rng.random() < 0.5:
        part.update(target)
    else:
        part[rng.choice([*part, "extra"])] = rng.choice((target, [target], {"a": [target]}))
    (run / "config.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def _config_text(rng: Random, run: Path) -> None:
    """What YAML can do, and what is none."""
    text = (run / "config.yaml").read_text()
    bombs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    added = (
        f"x: !!python/object/apply:os.mkdir [{MARK}]\n",
        f"x: !!python/object/new:os.mkdir {{args: [{MARK}]}}\n",
        f"x: !!python/name:os.mkdir\nz: !!timestamp x\ny: !!bool maybe\nw: !!float ''\nname: !!binary {MARK}\n",
        bombs,
        "x: " + "[" * 5000 + "]" * 5000 + "\n",
        "x: " + "{a: " * 900 + "1" + "}" * 900 + "\n",
        "x: ${oc.env:HOME}\n", "x: ${oc.create:{}}\n", "name: &n x\nother: *n\n", "<<: {seed: 3}\n", "? [a, b]\n: c\n", "1: 2\nnull: 3\n",
        "x: 2026-01-01\n", "x: 0x" + "f" * 5000 + "\n", "x: " + "9" * 5000 + "\n", "---\na: 1\n", "%YAML 9.9\n---\n", "\t\n", "x: '\n",
        "".join(f"k{i}: {i}\n" for i in range(60_000)), "x: \ud7ff\ufeff\n", "name: a\nname: b\n", "seed: 1e5_\n", "x: !<tag:yaml.org,2002:set> {a}\n",
    )  # fmt: skip
    chosen = rng.choice(added)
    text = text + chosen if rng.random() < 0.6 else chosen + text
    (run / "config.yaml").write_text(text, errors="surrogateescape")


def _place(rng: Random, data: Any) -> tuple[Any, Any]:
    """A container somewhere in the data, and a key or place in it; parts that are built are preferred."""
    built = (
        "data",
        "model",
        "noise",
        "schedule",
        "prediction",
        "sampler",
        "name",
        "averaging",
        "class_names",
        "guidance",
        "choices",
    )
    key: Any = rng.choice(built) if rng.random() < 0.85 else rng.choice(list(data))
    node = data
    while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.85:
        node = node[key]
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    return node, key


def _any_file(rng: Random, run: Path) -> None:
    """A file of the run is cut, changed, something else, or no file."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size < 1 << 24)
    named = ("config.yaml", "best.ckpt", "last.ckpt", "metrics.json", "overrides.yaml")
    path = rng.choice([path for path in files if path.name in named] or files)
    content = bytearray(path.read_bytes())
    kind = rng.randrange(8)
    if kind == 0:
        path.write_bytes(content[: rng.choice((0, 1, 100, len(content) // 2, len(content) - 1))])
    elif kind == 1:
        for _ in range(rng.choice((1, 5, 50))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    elif kind == 2:
        path.write_bytes(bytes(rng.randrange(256) for _ in range(500)))
    else:
        path.unlink()
        if kind == 3:
            os.mkfifo(path)
        elif kind == 4:
            path.symlink_to(rng.choice((path.name, "/dev/zero", "nowhere")))
        elif kind == 5:
            path.mkdir()
        elif kind == 6:
            with path.open("wb") as stream:
                stream.truncate(1 << 34)


class Payload:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (MARK,)


def _checkpoint(rng: Random, run: Path) -> None:
    """A checkpoint whose content is not what the config says, or does harm."""
    path = run / "checkpoints" / rng.choice(("best.ckpt", "best.ckpt", "last.ckpt"))
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    name = rng.choice(sorted(state))
    kind = rng.randrange(14)
    if kind == 0:
        content["x"] = Payload()
    elif kind == 1:
        path.write_bytes(pickle.dumps(Payload()))
        return
    elif kind == 2:
        del state[name]
    elif kind == 3:
        state[name] = torch.full_like(state[name], float("nan") if state[name].is_floating_point() else 7)
    elif kind == 4:
        state[name] = torch.zeros(rng.choice(((1,), (0,), (3, 3), ())))
    elif kind == 5:
        state[name] = torch.zeros(1).expand(10**9)  # claims gigabytes
    elif kind == 6:
        state[name] = rng.choice((3, None, "a", [1.0], {"a": 1}))
    elif kind == 7:
        content["state_dict"] = rng.choice((None, [], {}, {"a": torch.ones(1)}, {3: torch.ones(1)}, torch.ones(2)))
    elif kind == 8:
        state[name] = state[name].to(rng.choice((torch.float64, torch.complex64, torch.int8, torch.bool, torch.bfloat16)))
    elif kind == 9:
        content["current_model_state"] = rng.choice((None, {}, {"a": Payload()}, {"denoiser.x": 1}))
    elif kind == 10:
        state[name] = torch.zeros(4).to_sparse()
    elif kind == 11:
        for each, value in state.items():
            state[each] = value * 1e30
    elif kind == 12:
        state["denoiser.net.more"] = torch.ones(3)
    torch.save(content, path)
    if kind == 13:
        with zipfile.ZipFile(path) as archive:
            parts = {entry: archive.read(entry) for entry in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, part in parts.items():
                archive.writestr(entry, part)
            archive.writestr("archive/data/bomb", bytes(1 << 26))


def _record(rng: Random, run: Path) -> None:
    """A record of the training or an evaluation is not what it should be."""
    path = rng.choice(sorted(run.rglob("*.json")))
    if rng.random() < 0.2:
        path.write_text(
            rng.choice(
                ("", "{", "[]", "3", "null", "[" * 100_000, '{"scores": ' * 3000, "NaN", '{"scores": {"test/mse": 1e999}}')
            )
        )
        return
    record = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 3))):
        node: Any = record
        key: Any = rng.choice(list(record))
        while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.85:
            node = node[key]
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if rng.random() < 0.3 and isinstance(node, dict) and len(node) > 1:
            del node[key]
        else:
            node[key] = rng.choice(_VALUES)
    path.write_text(json.dumps(record))


def _overrides(rng: Random, run: Path) -> None:
    typed = [
        "noise.percent=0.3",
        "a[=",
        "=",
        "x.y.z=1",
        "name.x=1",
        "choices.a=1",
        "data..x=1",
        "${x}=1",
        3,
        None,
        ["a"],
        "$\\x$=1",
        "~",
        "",
    ]
    chosen: Any = rng.choice((rng.sample(typed, 4), typed, "text", 3, {"a": 1}, [], None))
    (run / "overrides.yaml").write_text(yaml.safe_dump(chosen))


def _picture(rng: Random, run: Path) -> None:
    path = rng.choice(sorted(run.rglob("*.png")))
    path.write_bytes(rng.choice((b"", b"text", path.read_bytes()[:200], b"\x89PNG\r\n\x1a\n" + bytes(100))))


def _folders(rng: Random, run: Path) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        shutil.rmtree(run / "checkpoints")
    elif kind == 1:
        (run / "inside").symlink_to("..")
    elif kind == 2:
        shutil.rmtree(run)
        run.symlink_to(run.name)
    elif kind == 3:
        deep = run
        for _ in range(80):
            deep = deep / "d"
        deep.mkdir(parents=True)
        shutil.copy(run / "config.yaml", deep / "config.yaml")
    else:
        run.rename(run.with_name("moved"))
        run.symlink_to("moved")


_KINDS = [_config_value] * 6 + [_config_target] * 3 + [_config_text] * 3 + [_any_file] * 3 + [_checkpoint] * 4 + [_folders]
_OF_REPORTS = [_config_value] * 2 + [_config_text, _any_file, _overrides, _picture, _folders] + [_record] * 6
