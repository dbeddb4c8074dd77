import pytest
from helpers import composed

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.compose import hydra_override


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("label_dropout=20", "label_dropout=20: should be less than or equal to 1"),
        ("guidance_scale=0.5", r"guidance_scale=0\.5: should be greater than or equal to 1"),
        ("name=../x", r"name=\.\./x: .* match pattern"),
        ("speed.compile=abc", r"speed\.compile=abc: should be 'auto' or a valid boolean"),
        ("speed=5", "speed=5: expected keys"),
        ("callbacks.previews=3", r"callbacks\.previews=3: expected keys with a _target_"),
        ("noise=null", "noise=null: expected one of fixed, logit_normal, uniform"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas=\[0\.9\]: should have at least 2 items"),
        ("optimizer.betas=[0.9,1.0]", r"optimizer\.betas\.1=1\.0: should be less than 1"),
        ("trainer.max_steps=0", r"trainer\.max_steps=0: should be greater than 0 or -1"),
        ("trainer.max_steps=-1", "trainer: set one of max_steps, max_epochs and max_time"),
        ("trainer.max_time=00:10:00", r"trainer\.max_time=00:10:00: expected DD:HH:MM:SS"),
        ("trainer.gradient_clip_val=0", r"trainer\.gradient_clip_val=0: should be greater than 0"),
        ("trainer.fast_dev_run=0.3", r"trainer\.fast_dev_run=0\.3: "),
        ("~trainer.log_every_n_steps", r"trainer\.log_every_n_steps: Field required"),
    ],
)
def test_invalid_settings_raise(override: str, message: str):
    with pytest.raises(UserError, match=f"^{message}"):
        composed(override)


def test_overrides_are_rewritten_in_the_syntax_of_hydra():
    assert hydra_override("ema=null") == "~ema"
    assert hydra_override("noise=0.3") == "noise='0.3'"
    assert hydra_override("seed=null") == "seed=null"
    assert hydra_override("sampler.steps=3", ["sampler"]) == "++sampler.steps=3"
