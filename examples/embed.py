"""A live run inside a program of one's own.   pip install . && python examples/embed.py [SOURCE]"""

import sys

import emostream


def on_emotion(emotion: emostream.Emotion) -> None:
    if emotion.kind == "utterance":
        print(f"{emotion.start_s:7.2f} {emotion.end_s:7.2f}  {emotion.label:<9} {emotion.text}", flush=True)


if __name__ == "__main__":  # the nodes are processes that import this file too
    config = emostream.load_config(streams=[sys.argv[1] if len(sys.argv) > 1 else "demo"])
    summary = emostream.run(config, on_emotion=on_emotion)
    print(f"{summary.utterances} utterances")
