"""Malformed input of all kinds, given to the scripts: `python tests/fuzz.py [--cases 300] [--seed 0]`.

Each case must end in success or in one clear sentence with status 2: never in a traceback, a hang, a half-made run, memory that
grows without end, or with code run that came in a file. Cases are made from the seed and their number alone, so that one that
failed can be repeated: `python tests/fuzz.py --only runs:17`.
"""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from fuzzing.case import RUNS, Case, Materials
from fuzzing.images import malformed_image
from fuzzing.overrides import malformed_overrides
from fuzzing.runs import malformed_run
from fuzzing.worker import Ended, remove, run_case
from helpers import CONF, SMALL, composed
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import unet_diffusion.evaluation.evaluate
import unet_diffusion.evaluation.report
import unet_diffusion.inference.denoise
import unet_diffusion.inference.export
import unet_diffusion.inference.sample
from unet_diffusion.training.experiment import train

KINDS: dict[str, Callable[[Random, Materials, Path], Case]] = {
    "overrides": malformed_overrides,
    "images": malformed_image,
    "runs": malformed_run,
}
_RUNS = {
    "lesson": (*SMALL, "model.channels=[4,8]", "trainer.max_steps=3"),
    "generator": (*SMALL[:-1], "experiment=06_classes", "model.channels=[8,16]", "sampler.steps=2", "trainer.max_steps=3"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"a kind ({', '.join(KINDS)}), or one case of it, such as runs:17")
    parser.add_argument("--verbose", action="store_true", help="say what each case was and how it ended")
    asked = parser.parse_args()
    kind, _, number = asked.only.partition(":")
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        os.environ["UNET_DIFFUSION_CACHE"] = str(Path(place) / "cache")
        materials = _materials(Path(place))
        print(f"{'':10}{'cases':>7}{'went well':>11}{'refused':>9}{'failed':>8}{'longest':>10}{'memory':>11}")
        for name in [kind] if kind else KINDS:
            numbers = [int(number)] if number else range(asked.cases)
            ended = {i: _one(name, i, asked.seed, materials, Path(place), asked.verbose) for i in numbers}
            counts = Counter("failed" if end.wrong else "refused" if end.status else "went well" for end in ended.values())
            longest, memory = max(end.seconds for end in ended.values()), max(end.memory for end in ended.values())
            line = "".join(f"{counts[key]:>{width}}" for key, width in (("went well", 11), ("refused", 9), ("failed", 8)))
            print(f"{name:10}{len(ended):>7}{line}{longest:>8.1f} s{memory >> 20:>7} MiB", flush=True)
            failed += counts["failed"]
    return min(failed, 1)


def _one(kind: str, number: int, seed: int, materials: Materials, place: Path, verbose: bool) -> Ended:
    folder = place / f"{kind}-{number}"
    folder.mkdir()
    shutil.copytree(materials.folder / "runs", folder / "runs")
    case = KINDS[kind](Random(f"{seed}/{kind}/{number}"), materials, folder)
    ended = run_case(case, folder)
    if ended.wrong or verbose:
        print(f"{kind}:{number} {ended.wrong or 'is fine'} ({ended.seconds:.1f} s, status {ended.status})")
        print(f"    {case.script}.py {shlex.join(case.arguments)[:1000]!r}")
        print(
            "".join(f"    | {line[:400]}\n" for line in ended.err.strip().splitlines()[-12 if ended.wrong else -1 :]),
            end="",
            flush=True,
        )
    remove(folder)
    return ended


def _materials(place: Path) -> Materials:
    """Two runs with an evaluation each, made in a process of its own: threads do not survive a fork."""
    started = time.monotonic()
    for name in RUNS:
        process = os.fork()
        if process == 0:
            _prepare(place / "materials" / "runs" / name, _RUNS[name])
        if os.waitpid(process, 0)[1]:
            sys.exit(f"the run {name} could not be made")
    keys = {script: _keys(script) for script in ("train", "sample", "evaluate", "denoise", "report", "export")}
    choices = {
        folder.name: [file.stem for file in sorted(folder.glob("*.yaml"))] for folder in CONF.iterdir() if folder.is_dir()
    }
    print(f"two runs were made in {time.monotonic() - started:.0f} s")
    return Materials(place / "materials", keys, choices)


def _prepare(path: Path, typed: tuple[str, ...]) -> None:
    status = 1
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of this process
        train(composed(*typed), path, typed)
        evaluation = ("num_images=200", "levels=[0.5]", "label=none", f"output={path / 'evaluations' / '1'}")
        unet_diffusion.evaluation.evaluate.evaluate(composed(f"run={path}", *evaluation, config="evaluate"))
        status = 0
    finally:
        os._exit(status)


def _keys(script: str) -> list[str]:
    needed = {"train": [], "report": ["runs=x"]}.get(script, ["run=x"])
    config = OmegaConf.to_container(composed(*needed, config=script))
    GlobalHydra.instance().clear()
    found: list[str] = []

    def collect(node: object, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            found.extend([f"{prefix}{key}"] if key != "debug" else [])  # it is there to show tracebacks
            collect(value, f"{prefix}{key}.")

    collect(config, "")
    return found


if __name__ == "__main__":
    sys.exit(main())
