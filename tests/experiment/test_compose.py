import pytest
from helpers import composed

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.compose import compose, hydra_override, references


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("seed=4294967296", "seed=4294967296: should be less than"),
        ("noise_seed=1.5", r"noise_seed=1\.5: should be a valid integer"),
        ("label_dropout=20", "label_dropout=20: should be less than or equal to 1"),
        ("guidance_scale=0.5", r"guidance_scale=0\.5: should be greater than or equal to 1"),
        ("name=../x", r"name=\.\./x: .* match pattern"),
        ("speed.compile=abc", r"speed\.compile=abc: should be 'auto' or a valid boolean"),
        ("+speed.x=true", r"speed\.x=True: no such key"),
        ("speed=5", "speed=5: expected keys"),
        ("trainer=null", "trainer=None: expected keys"),
        ("callbacks=null", "callbacks=None: expected keys"),
        ("callbacks.previews=3", r"callbacks\.previews=3: expected keys with a _target_"),
        ("noise=null", "noise=null: expected one of fixed, logit_normal, uniform"),
        ("optimizer.lr=0", r"optimizer\.lr=0: should be greater than 0"),
        ("optimizer.fused=maybe", r"optimizer\.fused=maybe: should be a valid bool"),
        ("optimizer.betas=[0.9]", r"optimizer\.betas=\[0\.9\]: should have at least 2 items"),
        ("optimizer.betas=[0.9,1.0]", r"optimizer\.betas\.1=1\.0: should be less than 1"),
        ("data.image_size=abc", r"data\.image_size=abc: should be a valid integer"),
        ("trainer.max_steps=abc", r"trainer\.max_steps=abc: should be a valid integer"),
        ("trainer.max_steps=0", r"trainer\.max_steps=0: should be greater than 0 or -1"),
        ("trainer.max_steps=-1", "trainer: set one of max_steps, max_epochs and max_time"),
        ("trainer.max_time=00:10:00", r"trainer\.max_time=00:10:00: expected DD:HH:MM:SS"),
        ("trainer.max_time=soon", r"trainer\.max_time=soon: "),
        ("trainer.val_check_interval=0", r"trainer\.val_check_interval=0: should be greater"),
        ("trainer.accumulate_grad_batches=0", r"trainer\.accumulate_grad_batches=0: "),
        ("trainer.gradient_clip_val=0", r"trainer\.gradient_clip_val=0: should be greater than 0"),
        ("trainer.fast_dev_run=0.3", r"trainer\.fast_dev_run=0\.3: "),
        ("~trainer.log_every_n_steps", r"trainer\.log_every_n_steps: Field required"),
    ],
)
def test_invalid_settings_raise(override: str, message: str):
    with pytest.raises(UserError, match=f"^{message}"):
        composed(override)


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        composed().seed = 1  # type: ignore[misc]


def test_default_name_is_the_choice_of_model():
    assert (composed("model=unet").name, composed("name=mine").name) == ("unet", "mine")


def test_overrides_are_rewritten_in_the_syntax_of_hydra():
    assert hydra_override("ema=null") == "~ema"
    assert hydra_override("noise=0.3") == "noise='0.3'"
    assert hydra_override("seed=null") == "seed=null"
    assert hydra_override("sampler.steps=3", ["sampler"]) == "++sampler.steps=3"


def test_references_are_keys_with_the_value_of_another_key():
    found = references(compose("train", []))
    assert found["model.image_size"] == "data.image_size"
    assert found["data.seed"] == "seed"
    assert "data.cache_dir" not in found  # only a part of its value is a reference
