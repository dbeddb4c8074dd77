"""Malformed override lists: what is typed after a script's name."""

import string
from pathlib import Path
from random import Random

from PIL import Image

from fuzzing.case import RUNS, Case, Materials

_QUIET = ["callbacks.progress_bar.refresh_rate=0", "callbacks.model_summary.max_depth=0"]
_GOOD = {
    "train": [*_QUIET, "model=lesson_narrow", "data.batch_size=32", "precision=fp32"],
    "sample": ["run={run}", "num_images=2"],
    "evaluate": ["run={run}", "num_images=0", "levels=[0.5]"],
    "denoise": ["run={run}", "input=photo.png"],
    "report": ["runs={run}"],
    "export": ["run={run}"],
}
_LAST = (  # whatever else was typed, nothing is trained in earnest
    ["trainer.fast_dev_run=true"],
    ["trainer.max_steps=1", "trainer.max_time=null", "++trainer.limit_val_batches=1", "++trainer.limit_test_batches=1"],
)
_SCRIPTS = ["train"] * 5 + ["sample"] * 3 + ["evaluate", "denoise", "report", "export"]
_VALUES = [
    "", "null", "None", "true", "abc", "-1", "0", "1", "2", "7", "100", "-0.5", "0.5", "1.5", "1e-9", "1e9", "1e400", "nan", "inf",
    "-inf", "999999999999", "1" + "0" * 30, "1" + "0" * 5000, "[]", "{}", "[1,2]", "[[]]", "[0.1,null]", "{a:1}", "{a:{b:[c]}}",
    "'", '"', "'a b'", "a b", "a=b", "=", ":", "{", "]", "\\", "\\n", "a\nb", "\t", "é", "猫", "🐈", "..", "/", "/dev/null",
    "/dev/null/x", "~nobody-here/x", "loop", "x" * 300, "y" * 5000, "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${seed}", "${nope}",
    "${.x}", "${name}${name}", "${oc.create:{a:1}}", "${oc.decode:'['}", "${eval:1}", "${", "???", "1,2", "range(1,3)",
    "glob(*)", "choice(a,b)", "sort(3,1)", "tag(a,1)", "int(3)", "int(x)", "interval(0,1)", "0x10", "1_000", "08", "2026-01-01",
]  # fmt: skip
_NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "5",
    "10",
    "0.1",
    "0.3",
    "0.99",
    "1.0",
    "1e-3",
    "true",
    "false",
    "auto",
    "null",
    "32",
    "64",
]
_FLAGS = [
    "-m", "--multirun", "--cfg", "--cfg=job", "--cfg=x", "-c", "--package=x", "--config-name=x", "--config-dir=x", "--config-path=x",
    "--resolve", "--nothing", "-x", "--info=x", "--", "-", "--experimental-rerun=x", "--run", "--shell-completion",
]  # fmt: skip
_HYDRA = [
    "hydra/launcher=x", "hydra/sweeper=x", "hydra.run.dir=/dev/null/x", "hydra.sweep.dir=/dev/null/x", "hydra.x=1", "+hydra.x=1",
    "hydra.job.chdir=x", "hydra.verbose=x", "hydra=x", "~hydra", "hydra.mode=x", "hydra.callbacks=null",
    "hydra.sweeper.params=3", "hydra.run.dir=null", "hydra.sweep.subdir=null", "hydra.searchpath=[x]", "hydra/job_logging=x",
]  # fmt: skip
# these start processes, the compiler, downloads or minutes of resizing where they are right
_LIMITED = {
    "trainer.devices": ["abc", "0", "[]", "-5", "null", "1.5"],
    "trainer.strategy": ["abc", "null", "3", "[]"],
    "speed.compile": ["abc", "null", "3"],
    "data": ["image_folder", "fashion_mnist_mini", "mnis", "null", "", "[a]"],
    "experiment": ["01_lesson", "04_flow", "06_classes", "7", "null", "[a]"],
    "num_images": ["-1", "0", "3", "abc", "null", "1e3", "999999999999", "[]"],
}


def malformed_overrides(rng: Random, materials: Materials, folder: Path) -> Case:
    """A valid command line with a few things wrong with it."""
    (folder / "loop").symlink_to("loop")
    Image.new("L", (16, 16), 90).save(folder / "photo.png")
    script = rng.choice(_SCRIPTS)
    words = [word.replace("{run}", f"runs/{rng.choice(RUNS)}") for word in _GOOD[script]]
    if rng.random() < 0.15:
        words.pop(rng.randrange(len(words)))
    if rng.random() < 0.06:
        words.append("-m")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        words.insert(rng.randint(0, len(words)), _wrong_word(rng, materials, script))
    return Case(script, [word for word in words if "\0" not in word] + (rng.choice(_LAST) if script == "train" else []))


def _wrong_word(rng: Random, materials: Materials, script: str) -> str:
    kind = rng.choices(
        ("value", "choice", "misspelt", "sign", "shape", "noise", "flag", "hydra"), (44, 14, 8, 12, 10, 4, 4, 4)
    )[0]
    key = rng.choice(materials.keys[script])
    value = rng.choice(_LIMITED.get(key) or rng.choice((_VALUES, _NUMBERS)))
    if rng.random() < 0.5 and not set(value) <= set(string.ascii_letters + string.digits + "._-[],"):
        value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"  # most would not be read otherwise
    if kind == "choice":
        group = rng.choice(sorted(materials.choices))
        choices = materials.choices[group]
        value = rng.choice(_LIMITED.get(group) or [*choices, *choices, rng.choice(choices)[:-1], "[a,b]", "null", ""])
        return f"{group}={value}"
    if kind == "misspelt":
        at = rng.randrange(len(key))
        return f"{key[:at]}{rng.choice(('', key[at] * 2, 'x', '.', '/', '@', ' '))}{key[at + 1 :]}={value}"
    if kind == "sign":
        return rng.choice((f"+{key}={value}", f"++{key}={value}", f"~{key}", f"~{key}={value}", f"{key}@x={value}", f"{key}"))
    if kind == "shape":
        return rng.choice(
            (f"+{key}.x={value}", f"{key}._target_={value}", f"+{key}._partial_=true", f"{key}={{x:{{}}}}", f"{key}=[[1]]")
        )
    if kind == "noise":
        return "".join(rng.choice(string.printable + "éß€") for _ in range(rng.randint(1, 30)))
    if kind == "flag":
        return rng.choice(_FLAGS)
    return rng.choice(_HYDRA) if kind == "hydra" else f"{key}={value}"
