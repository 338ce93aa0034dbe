"""emostream's public messages (JSON) as those of ROS4HRI: REP-155 and the package hri_msgs, 2.1 or newer. Needs no ROS.

Messages are plain dictionaries, as ``rosidl_runtime_py.set_message_fields`` takes them. Fields that are not named keep
the message's defaults.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# The strings that hri_msgs/msg/Expression allows, by labels: those of Ekman's emotions as corpora name them. A label
# that is not here has no place in that message.
EXPRESSIONS = {
    "neutral": "neutral",
    "anger": "angry", "angry": "angry",
    "sadness": "sad", "sad": "sad",
    "joy": "happy", "happiness": "happy", "happy": "happy",
    "surprise": "surprised", "surprised": "surprised",
    "disgust": "disgusted", "disgusted": "disgusted",
    "fear": "scared", "fearful": "scared", "scared": "scared",
    "excitement": "excited", "excited": "excited",
    "boredom": "bored", "bored": "bored",
}  # fmt: skip
FACE, VOICE = 2, 4  # constants of hri_msgs/msg/IdsMatch
UNKNOWN = float("nan")


class Publication(NamedTuple):
    """A message for a topic; ``type`` as in ``hri_msgs/msg/Expression``."""

    topic: str
    type: str
    message: dict[str, Any]


class Humans:
    """Turns public messages into ROS messages, and knows which faces and voices there are.

    Ids: face 3 of the stream ``desk`` is ``f3_desk``, its voice s1 ``s1_desk``, and a voice that was not told from
    others ``v_desk``. ``locale``: of the recogniser, such as ``en_GB``. ``frame_id``: of the camera."""

    def __init__(self, locale: str = "", frame_id: str = "") -> None:
        self._locale, self._frame_id = locale, frame_id
        self._names: dict[str, str] = {}  # of streams, as a topic may have them
        self._faces: dict[str, list[str]] = {}  # by stream
        self._voices: dict[str, list[str]] = {}

    @property
    def ids(self) -> set[str]:
        """All faces and voices that are tracked."""
        return {one for ids in (*self._faces.values(), *self._voices.values()) for one in ids}

    def emotion(self, content: dict[str, Any], text: str) -> list[Publication]:
        """What is to be published for a label or a running estimate. ``text``: the same as JSON."""
        stream = content["stream"]
        header = self._header(content["captured_ns"] or content["published_ns"])
        topic = f"/emostream/{content['kind']}"
        published = [Publication(topic, "std_msgs/msg/String", {"data": text})]
        published += self._see(stream, header, [self._face(stream, face["id"]) for face in content["faces"]])
        for face in content["faces"]:
            published += self._describe(content, face, header)
        voice = self._voice(stream, content["speaker"])
        published += self._hear(stream, header, voice)
        return published + self._say(content, voice, header)

    def status(self, content: dict[str, Any]) -> list[Publication]:
        """What is to be published for a status: faces are gone where none was seen for a second."""
        header = self._header(content["published_ns"])
        published = []
        for stream, state in content["streams"].items():
            if state["state"] in ("away", "ended") or not state["face"]:
                published += self._see(stream, header, [])
        return published

    def gone(self, now_ns: int) -> list[Publication]:
        """What is to be published when the run is away: nobody is there. ``now_ns``: Unix time."""
        self._faces.clear()
        self._voices.clear()
        header = self._header(now_ns)
        return [self._tracked(kind, header, {}) for kind in ("faces", "voices")]

    def _describe(self, content: dict[str, Any], face: dict[str, Any], header: dict[str, Any]) -> list[Publication]:
        """Where a face is and what it shows."""
        topic = f"/humans/faces/{self._face(content['stream'], face['id'])}"
        x, y, width, height = face["box"]
        place = {
            "header": header,
            "xmin": _within(x), "ymin": _within(y), "xmax": _within(x + width), "ymax": _within(y + height),
            "c": face["share"],
        }  # fmt: skip
        published = [Publication(f"{topic}/roi", "hri_msgs/msg/NormalizedRegionOfInterest2D", place)]
        if face["label"] is not None:  # from this face alone: video.who = "all"
            label, confidence, valence, arousal = face["label"], max(face["probabilities"].values()), None, None
        elif face["id"] == content["face"]:
            label, confidence = content["label"], content["confidence"]
            valence, arousal = content["valence"], content["arousal"]
        else:
            return published
        if label.lower() in EXPRESSIONS:
            expression = {
                "header": header,
                "expression": EXPRESSIONS[label.lower()],
                "valence": UNKNOWN if valence is None else valence,
                "arousal": UNKNOWN if arousal is None else arousal,
                "confidence": confidence,
            }
            published.append(Publication(f"{topic}/expression", "hri_msgs/msg/Expression", expression))
        return published

    def _say(self, content: dict[str, Any], voice: str, header: dict[str, Any]) -> list[Publication]:
        """Whether somebody speaks, what was said, and which face said it. Estimates are of nobody's voice yet."""
        stream, final = content["stream"], content["kind"] == "utterance"
        speaking = f"/humans/voices/{self._voice(stream, None)}/is_speaking"
        published = [Publication(speaking, "std_msgs/msg/Bool", {"data": not final})]
        if content["text"]:
            speech = {"header": header, "final" if final else "incremental": content["text"], "locale": self._locale}
            if final and content["words"]:
                sureness = [word["confidence"] for word in content["words"]]
                speech["confidence"] = _within(sum(sureness) / len(sureness))
            published.append(Publication(f"/humans/voices/{voice}/speech", "hri_msgs/msg/LiveSpeech", speech))
        moves = {face["id"]: face["moves"] or 0.0 for face in content["faces"]}.get(content["speaking"], 0.0)
        if final and moves > 0:  # 0 would mean that they do not belong together
            match = {
                "id1": self._face(stream, content["speaking"]), "id1_type": FACE,
                "id2": voice, "id2_type": VOICE, "confidence": _within(moves),
            }  # fmt: skip
            published.append(Publication("/humans/candidate_matches", "hri_msgs/msg/IdsMatch", match))
        return published

    def _see(self, stream: str, header: dict[str, Any], faces: list[str]) -> list[Publication]:
        if self._faces.get(stream, []) == faces:
            return []
        self._faces[stream] = faces
        return [self._tracked("faces", header, self._faces)]

    def _hear(self, stream: str, header: dict[str, Any], voice: str) -> list[Publication]:
        """A voice stays until the run is away: who learns of it here still has to subscribe to what it says."""
        known = self._voices.setdefault(stream, [])
        new = [one for one in dict.fromkeys((self._voice(stream, None), voice)) if one not in known]
        known += new
        return [self._tracked("voices", header, self._voices)] if new else []

    @staticmethod
    def _tracked(kind: str, header: dict[str, Any], ids: dict[str, list[str]]) -> Publication:
        listed = [one for some in ids.values() for one in some]
        return Publication(f"/humans/{kind}/tracked", "hri_msgs/msg/IdsList", {"header": header, "ids": listed})

    def _face(self, stream: str, number: int) -> str:
        return f"f{number}_{self._name(stream)}"

    def _voice(self, stream: str, speaker: str | None) -> str:
        return f"{speaker or 'v'}_{self._name(stream)}"

    def _name(self, stream: str) -> str:
        """A stream's name with nothing but letters, digits and single underscores, and no other stream's."""
        if stream not in self._names:
            name = re.sub(r"[^A-Za-z0-9]+", "_", stream).strip("_") or "stream"
            while name in self._names.values():
                name += "x"
            self._names[stream] = name
        return self._names[stream]

    def _header(self, unix_ns: int) -> dict[str, Any]:
        sec, nanosec = divmod(unix_ns, 1_000_000_000)
        return {"stamp": {"sec": sec, "nanosec": nanosec}, "frame_id": self._frame_id}


def _within(value: float) -> float:
    return min(1.0, max(0.0, value))
