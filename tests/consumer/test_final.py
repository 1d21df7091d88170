"""The final model is there whole or not at all: a report takes its presence for the end of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from broker.errors import Refused
from consumer.__main__ import write_final
from tests.consumer.test_trainer import trainer


def test_a_save_that_fails_leaves_no_model_and_the_next_one_a_whole_one(tmp_path: Path) -> None:
    final, source = tmp_path / "run" / "model", tmp_path / "source"
    with pytest.raises(Refused, match="no tokenizer"):  # after the weights
        write_final(final, source, trainer())
    assert not final.exists()
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    for _ in range(2):  # and once more, over the one that is there
        write_final(final, source, trainer())
        assert [path.name for path in final.parent.iterdir()] == ["model"]
        AutoModelForCausalLM.from_pretrained(final)
        assert (final / "tokenizer.json").exists()
