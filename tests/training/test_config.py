from __future__ import annotations

import math

import pytest

from lstmvid.training.config import RunConfig
from lstmvid.training.presets import PRESETS


def test_settings_survive_a_round_trip(settings):
    config = RunConfig.from_dict(settings)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["model"]["copy_state"] == []


def test_batch_size_comes_from_the_preset_unless_given():
    assert RunConfig.from_dict({"optimizer": {"preset": "original"}}).batch_size == 80
    assert RunConfig.from_dict({"data": {"batch_size": 3}}).batch_size == 3


def test_presets_can_be_changed():
    config = RunConfig.from_dict({"optimizer": {"preset": "original", "learning_rate": 0.5, "weight_decay": 0.0}})
    preset = config.optimizer.resolve()
    assert (preset.learning_rate, preset.weight_decay, preset.clip) == (0.5, 0.0, PRESETS["original"].clip)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"hidden_size": 0}}, r"model\.hidden_size is 0, expected an integer of at least 1"),
        ({"model": {"hidden_size": 3.0}}, r"model\.hidden_size is 3\.0"),
        ({"model": {"num_layers": True}}, r"model\.num_layers is True"),
        ({"model": {"dropout": math.nan}}, r"model\.dropout is nan"),
        ({"model": {"dropout": 1}}, r"model\.dropout is 1, expected a number from 0 to below 1"),
        ({"model": {"predict": None, "reconstruct": None}}, r"model\.reconstruct and predict are both null"),
        ({"model": {"copy_state": ["encode"]}}, r"model\.copy_state is \['encode'\]"),
        ({"optimizer": {"learning_rate": math.inf}}, r"optimizer\.learning_rate is inf, expected a finite number"),
        ({"optimizer": {"momentum": 1.0}}, r"optimizer\.momentum is 1\.0, expected a finite number between 0 and 1"),
        ({"optimizer": {"preset": "adam"}}, r"optimizer\.preset is 'adam', expected one of default, original"),
        ({"data": {"digits": ""}}, r"data\.digits is ''"),
        ({"data": {"frame_size": 27}}, r"data\.frame_size is 27"),
        ({"trainer": {"max_steps": None}}, r"trainer\.max_steps is None"),
        ({"trainer": {"feedback": 1.1}}, r"trainer\.feedback is 1\.1, expected a finite number from 0 to 1"),
        ({"trainer": 3}, r"trainer is 3, expected settings by name"),
        ({"trainer": {"steps": 3}}, r"trainer\.steps is no setting; trainer has max_steps"),
        ({"train": {}}, r"train is no setting; there are output, seed, model"),
        ({"seed": -1}, r"seed is -1"),
        ({"output": ""}, r"output is ''"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(settings)


def test_expected_finds_settings_by_their_full_name():
    assert RunConfig.expected("seed") == "an integer of at least 0"
    assert RunConfig.expected("optimizer.clip") == "a finite number above 0, or null for the preset's"
