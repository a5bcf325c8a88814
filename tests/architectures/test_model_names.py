"""What config.json calls a model has to be text, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from phiconv.architectures import find
from phiconv.architectures.config import Config
from phiconv.errors import ConfigError


@pytest.mark.parametrize("key", ["architectures", "model_type"])
@pytest.mark.parametrize("name", [3, True, ["phi3"], {"phi3": 1}])
def test_a_name_that_is_no_text_is_refused(key, name):
    config = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    wrong = {"architectures": [*config["architectures"], name], "model_type": name}
    with pytest.raises(ConfigError, match=f"key {key}: .* is no text"):
        find(Config(config | {key: wrong[key]}, Path("model/config.json")))
