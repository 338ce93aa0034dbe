"""stream-train voice --data DIR --out DIR: the voice encoder alone, evaluated in noise, in rooms and on the phone."""

from __future__ import annotations

import argparse
from pathlib import Path

from emostream.train.commands.options import add_cache, add_data, need_data

PRESETS = ("full", "tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "DIR", "folder with ravdess/, emodb/, nemo/, noise/, rir/ and meetings/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where voice.onnx and voice.json go")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="sizes (default: %(default)s)")
    add_cache(parser, "log-mel rows and finished encoders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Train, export and evaluate the encoder. Raises CorpusError, ModelError or ExportError."""
    data = need_data(arguments.data, "where are the corpora", "DIR")

    import torch  # heavy imports, once the arguments are right

    from emostream.files import as_json, write_atomically
    from emostream.train.bundle import voice_recipe
    from emostream.train.bundle.voice import export
    from emostream.train.progress import ProgressBars

    torch.set_num_threads(arguments.threads)
    with ProgressBars() as progress:
        net, figures = voice_recipe.make_voice(
            data, arguments.cache, voice_recipe.PRESETS[arguments.preset], arguments.seed, progress.stage
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    export(net, arguments.out / "voice.onnx")
    write_atomically(arguments.out / "voice.json", as_json(figures))
    for corpus, conditions in figures.items():
        for condition, scores in conditions.items():
            shown = (f"{name} {scores[name]:.3f}" for name in ("accuracy", "balanced_accuracy", "heard"))
            print(f"{corpus:<8} {condition:<14}", *shown)
    print(f"encoder: {arguments.out / 'voice.onnx'}")
    return 0
