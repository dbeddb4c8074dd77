"""The settings that make a training fast."""

from pathlib import Path

import pytest
import torch._inductor.config
from helpers import FEW_BATCHES, Trained, scores


def test_training_without_a_compiler_is_not_compiled(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/none/g++"))
    run = trained(*FEW_BATCHES, "logger=csv", "speed.compile=true", "trainer.max_steps=2")
    assert scores(run)["test/mse"] > 0
    out = capsys.readouterr().out
    assert "speed.compile=True: not possible, trained without it (InvalidCxxCompiler" in out
    assert "compile false" in out


def test_training_without_loggers_writes_its_scores(trained: Trained):
    run = trained(*FEW_BATCHES, "logger=null", "trainer.max_steps=2")
    assert scores(run)["test/mse"] > 0
    assert not (run / "metrics.csv").exists()
