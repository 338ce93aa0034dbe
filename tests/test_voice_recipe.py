"""``stream-train voice``: from corpora to an encoder and its figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from emostream.engines.onnx import OnnxRuntime
from emostream.errors import Problems
from emostream.stream.features.voice import DIM
from emostream.train.bundle.degrade import CONDITIONS
from emostream.train.bundle.voice import embedding_file, pretrained
from emostream.train.bundle.voice_recipe import load_speech
from emostream.train.commands.main import main

DATA = Path(os.environ.get("EMOSTREAM_DATA", "/nonexistent"))


@pytest.mark.slow
def test_each_rebuilt_stage_computes_what_the_pretrained_networks_does():
    """Given the pretrained network's input to the stage; compared where padding in time does not reach."""
    model = onnx.load(str(embedding_file()))
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    names = [name for pool in pools for name in (pool.input[0], pool.output[0])]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(0).normal(1, 1, (76, 32)).astype(np.float32)
    values = session.run(names, {session.get_inputs()[0].name: rows[None, :, :, None]})
    value = dict(zip(names, (torch.from_numpy(v) for v in values), strict=True))  # (1, C, T, F)
    x = torch.from_numpy(rows)[None, None]
    with torch.inference_mode():
        for stage, pool in zip(pretrained(7).eval().stages, pools, strict=False):
            want, reach = value[pool.input[0]], 0
            for convolution in stage:
                x = F.leaky_relu(convolution(x), 0.2).clamp(min=-0.4)
                reach += convolution.padding[0]
            inside = x[:, :, reach : x.shape[2] - reach]
            assert inside.shape == want.shape and want.std() > 0.01
            torch.testing.assert_close(inside, want, atol=1e-4, rtol=1e-4)
            x = value[pool.output[0]]


def test_corpora_that_are_missing_are_listed_at_once(tmp_path):
    with pytest.raises(Problems) as raised:
        load_speech(tmp_path)
    assert [name for name in ("RAVDESS", "EmoDB", "nEMO") if name not in str(raised.value)] == []


@pytest.mark.long
@pytest.mark.skipif(not (DATA / "nemo").is_dir(), reason="EMOSTREAM_DATA names no folder with nemo, rir and noise")
def test_the_command_writes_an_encoder_and_its_figures(tmp_path, capsys):
    command = ["voice", "--data", str(DATA), "--out", str(tmp_path), "--cache", str(tmp_path / "c"), "--preset", "tiny"]
    assert main(command) == 0
    assert "RAVDESS  clean" in capsys.readouterr().out
    figures = json.loads((tmp_path / "voice.json").read_text())
    assert set(figures) == {"RAVDESS", "EmoDB", "nEMO"} and set(figures["nEMO"]) == set(CONDITIONS)
    vectors = OnnxRuntime(tmp_path / "voice.onnx").run({"rows": np.zeros((1, 16, 32), np.float32)})["vectors"]
    assert vectors.shape == (1, 2, DIM)
