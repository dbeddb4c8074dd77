from pathlib import Path

import pytest
from helpers import SMALL, built, composed

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build, changed_images, check_config
from unet_diffusion.experiment.schema import Recorded


def test_number_of_classes_is_that_of_the_data():
    experiment = built("model=unet", "model.channels=[16]", "model.num_classes='${num_classes}'")
    assert experiment.denoiser.net.num_classes == len(experiment.datamodule.class_names) == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("prediction=epsilon", r"prediction=epsilon: .* Use schedule=ddpm"),
        ("model=unet data.image_size=18", r"data\.image_size=18: .*The next size is 20\."),
        ("model=unet data.image_size=[16,18]", r"data\.image_size=\[16, 18\]: .* is \[16, 20\]\."),
        ("experiment=07_one_step schedule=cosine", ".* prediction=velocity schedule=linear"),
        ("experiment=07_one_step prediction=x0", ".* prediction=velocity schedule=linear"),
    ],
)
def test_parts_that_do_not_fit_together_raise(overrides: str, message: str):
    with pytest.raises(UserError, match=f"^{message}"):
        built(*overrides.split())


def test_check_config_finds_invalid_parts_without_the_data():
    check_config(composed("data=image_folder", "data.root=missing", "model=unet"))
    with pytest.raises(UserError, match=r"^optimizer\.x: unknown key"):
        check_config(composed("data=image_folder", "+optimizer.x=3"))


def test_own_classes_need_trust_before_the_training(monkeypatch: pytest.MonkeyPatch):
    config = composed()
    source = {"_target_": "mylab.Dots"}
    own = config.model_copy(update={"data": {**config.data, "source": source}})
    with pytest.raises(UserError, match=r"^data.source._target_=mylab.Dots.*_TRUST=mylab"):
        build(own, Path("unused"), Recorded(), first_step=None)
    monkeypatch.setenv("UNET_DIFFUSION_TRUST", "mylab")
    with pytest.raises(UserError, match=r"data.source._target_=mylab.Dots: no such class"):
        build(own, Path("unused"), Recorded(), first_step=None)


def test_added_or_removed_classes_are_named():
    experiment = built(*SMALL)
    config = experiment.config.model_copy(update={"class_names": ["bag", "shoe"]})
    message = changed_images(config, Recorded(), experiment.datamodule)
    assert message is not None
    assert "classes were added or removed" in message
    assert "(ankle-boot, coat, " in message
    same = config.model_copy(update={"class_names": list(experiment.datamodule.class_names)})
    assert changed_images(same, Recorded(), experiment.datamodule) is None
