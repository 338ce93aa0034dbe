"""The model card of a bundle, written from its manifest, so that the two cannot disagree.

Its headings follow Mitchell et al., "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emostream.engines.bundle import SUBSETS, Bundle

NAMES = {"audio": "sound", "video": "face", "text": "words"}
WEAK = 0.5  # recalls below this are listed among the failures


def shown(name: str) -> str:
    """A figure's name for readers: ``audio+video (label-paired)`` → ``sound + face (label-paired)``."""
    for key, word in NAMES.items():
        name = name.replace(key, word)
    return name.replace("+", " + ")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats have three decimals."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def card(bundle: Bundle) -> str:
    """``docs/model-card.md`` of a bundle that ``train fit`` made. Raises KeyError if its manifest lacks figures."""
    manifest = bundle.manifest
    training, metrics = manifest.training, manifest.metrics
    validation, calibration = metrics["validation"], metrics["calibration"]
    preset = training["preset"]
    size = sum(file.bytes for file in manifest.files.values()) / 1e6

    figures = table(
        ["held-out data", "items", "accuracy", "balanced accuracy", "macro F1"],
        [
            (shown(name), f["items"], f["accuracy"], f["balanced_accuracy"], f["macro_f1"])
            for name, f in validation.items()
        ],
    )
    recalls = table(
        ["held-out data", *manifest.labels],
        [(shown(name), *(f["recall"].get(label, "") for label in manifest.labels)) for name, f in validation.items()],
    )
    weak = [
        f"{shown(name)}: " + ", ".join(f"{label} {r:.2f}" for label, r in f["recall"].items() if r < WEAK)
        for name, f in validation.items()
        if any(r < WEAK for r in f["recall"].values())
    ]
    paired = {name: validation.get(name) or validation[f"{name} (label-paired)"] for name in SUBSETS}
    only = table(
        ["given", "this bundle", "a model trained without", "its accuracy", "difference"],
        [
            (shown(name), paired[name]["accuracy"], NAMES[absent], f["accuracy"],
             f"{paired[name]['accuracy'] - f['accuracy']:+.3f}")
            for absent, by_name in metrics["trained_without"].items() for name, f in by_name.items()
        ],
    )  # fmt: skip
    calibrated = table(
        ["modalities", "temperature", "ECE before", "ECE", "ECE if perfect", "not uncertain", "wrong of these",
         "wrong of all"],
        [
            (shown(name), manifest.temperature[name], f["ece_before"], f["ece"], f["ece_floor"],
             f"{f['coverage']:.0%}", f"{f['risk']:.0%}", f"{f['risk_all']:.0%}")
            for name, f in calibration["by_modalities"].items()
        ],
    )  # fmt: skip
    conditions = table(
        ["the same sound", "accuracy", "balanced accuracy", "heard"],
        [(name, f["accuracy"], f["balanced_accuracy"], f["heard"]) for name, f in metrics["conditions"].items()],
    )
    live = table(
        ["recordings", "recogniser", "items", "accuracy", "balanced accuracy", "macro F1", "without an utterance"],
        [
            (f["recordings"], f["recogniser"], f["items"], f["accuracy"], f["balanced_accuracy"], f["macro_f1"],
             f["without_utterance"])
            for f in metrics.get("live", {}).values()
        ],
    )  # fmt: skip
    data = table(
        ["corpus", "for", "training items", "held out", "licence", "source"],
        [
            (c.name, NAMES[c.used_for], c.items, training["held_out"][c.name], c.licence, c.citation)
            for c in manifest.corpora
        ],
    )
    shares = table(
        ["given", *manifest.labels],
        [(shown(name), *(mix[label] for label in manifest.labels)) for name, mix in manifest.label_shares.items()],
    )
    parameters = ", ".join(f"{name} {count:,}" for name, count in training["parameters"].items())

    return f"""# Model card: {manifest.name}

<!-- Written by `python -m train card` from the bundle's manifest; a test checks that they agree. -->

Bundle `{bundle.id}`, {size:.1f} MB; parameters: {parameters}. It takes sound, a face and words, any of which may be
absent, and gives one of these labels: {", ".join(manifest.labels)}.

**Read this first.** {training["label_paired"][0].upper() + training["label_paired"][1:]} The sound is acted
speech; the faces are photographs, so nothing was learnt of how a face moves; the words are comments and television
dialogue. Figures on such data say little about spontaneous speech in a room.

## What it is for

Research in affective computing and human-robot interaction; interfaces that react to how something was said, where a
wrong guess does no harm and the person knows about it. A label is a guess about *expression*: what a listener might
call the sound, the face and the words. It does not measure what a person feels.

## What it must not be used for

- Inferring emotions of people at work or in education. In the European Union this is prohibited (Regulation (EU)
  2024/1689, article 5(1)(f), except for medical or safety reasons); other uses of emotion recognition are high-risk
  there (annex III, 1(c)), and the people concerned must be informed (article 50(3)).
- Deciding on hiring, credit, insurance, policing, migration, benefits; lie detection; diagnosis or triage.
- Watching people who have not agreed to it.
- Anything commercial: {manifest.licence}

## Data

{data}

## Training

    {training["command"]}

{training["video"][0].upper() + training["video"][1:]}. Fusion: {preset["attention"]}-attention,
{preset["fusion_steps"]} steps, with modalities left out at random. Augmentation: speed, rooms, microphones, noise,
voices, codecs and gain of sound ({preset["voice_copies"] - 1} copies of each recording); turns, shifts, light, blur,
mirroring and hidden patches of faces; missed and misheard words.
{training["selection"][0].upper() + training["selection"][1:]}

How often each label occurred in the fusion network's training; `[fusion] prior` corrects for this where labels occur
with other frequencies:

{shares}

## Figures

On held-out speakers and items; {metrics["chance"]}. "Label-paired" examples are made of items of equal label.

{figures}

Recall of each label:

{recalls}

The held-out recordings of RAVDESS, by sound alone, under other microphones, rooms and lines; training never used these
noises, voices and rooms. "Heard" is the share in which voice activity detection finds speech; the other recordings are
labelled whole.

{conditions}

One model serves all sets of modalities. The table compares it with models trained without one of the modalities
(accuracy, one training of each):

{only}

## Live

The same held-out recordings through the whole live pipeline, `stream-label` and then `python -m train score`:

{live}

Offline, the sound of these recordings alone gives {validation["audio"]["accuracy"]:.3f}. RAVDESS's two sentences say
nothing about the emotion, so their words can only mislead.

## Calibration

{calibration["how"]} ECE is the expected calibration error in 15 bins; "if perfect" is
{calibration["ece_floor"]}. An answer is marked uncertain below a probability of {manifest.uncertain_below}:
{calibration["uncertain_below"]}.

{calibrated}

## Known failures

- Recalls below {WEAK}:
{chr(10).join(f"  - {line}" for line in weak)}
- Screams at full scale are not always taken for speech by the voice activity detector, and then have no label at all:
  the table under "Live" counts the recordings without an utterance.
- Accuracy differs by group; see the rows of the first table for women, men and German speech. Differences by age, skin,
  accent and disability were not measured: the corpora do not record them.
- English words only: words of other languages are noise to the model, and the label then depends on sound and face.
- Music, and several people speaking at once, were not in the training data.
"""
