"""The node: subscribes to emostream's public socket and publishes ROS4HRI messages.

ros2 run emostream_ros bridge --ros-args -p endpoint:=tcp://127.0.0.1:5556 -p locale:=en_GB
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import rclpy
import zmq
from rclpy.node import Node
from rosidl_runtime_py import set_message_fields
from rosidl_runtime_py.utilities import get_message

from emostream_ros.mapping import Humans, Publication

SILENT_S = 5.0  # a run publishes its status each second
DEPTH = 10  # of the publishers' queues


class Bridge(Node):
    """Parameters: ``endpoint`` of the run, ``key``: a client's key file for a run on another machine, ``locale`` and
    ``frame_id`` as in the messages."""

    def __init__(self) -> None:
        super().__init__("emostream_bridge")
        settings = {"endpoint": "tcp://127.0.0.1:5556", "key": "", "locale": "", "frame_id": ""}
        endpoint, key, locale, frame_id = (
            self.declare_parameter(name, value).get_parameter_value().string_value for name, value in settings.items()
        )
        self._humans = Humans(locale, frame_id)
        self._publishers_by_topic: dict[str, Any] = {}
        self._heard_s = time.monotonic()
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        if key:
            keys = dict(re.findall(r'(\w+)-key = "(.{40})"', Path(key).read_text(encoding="utf-8")))
            self._socket.curve_publickey, self._socket.curve_secretkey = (
                keys["public"].encode(),
                keys["secret"].encode(),
            )
            self._socket.curve_serverkey = keys["server"].encode()
        self._socket.connect(endpoint)
        for topic in (b"emotion/", b"status"):
            self._socket.subscribe(topic)
        self.get_logger().info(f"listening at {endpoint}")

    def step(self, wait_ms: int) -> None:
        """Wait for a message, as long as ``wait_ms``, and publish what follows from it."""
        if self._socket.poll(wait_ms):
            topic, body = self._socket.recv_multipart()
            self._heard_s = time.monotonic()
            try:
                text = body.decode()
                content = json.loads(text)
                status = topic == b"status"
                publications = self._humans.status(content) if status else self._humans.emotion(content, text)
            except (ValueError, KeyError, TypeError) as error:
                self.get_logger().warning(f"skipped a message that is not that of emostream 0.2 or newer ({error!r})")
                return
            self._publish(publications)
        elif time.monotonic() - self._heard_s > SILENT_S:
            self._heard_s = time.monotonic()
            self._publish(self._humans.gone(time.time_ns()))

    def _publish(self, publications: list[Publication]) -> None:
        for topic, kind, content in publications:
            if topic not in self._publishers_by_topic:
                self._publishers_by_topic[topic] = self.create_publisher(get_message(kind), topic, DEPTH)
            message = get_message(kind)()
            set_message_fields(message, content)
            self._publishers_by_topic[topic].publish(message)
        for topic in list(self._publishers_by_topic):  # of a face that is gone
            about = re.fullmatch(r"/humans/(?:faces|voices)/(\w+)/\w+", topic)
            if about and about[1] not in self._humans.ids:
                self.destroy_publisher(self._publishers_by_topic.pop(topic))


def main() -> None:
    rclpy.init()
    bridge = Bridge()
    try:
        while rclpy.ok():
            bridge.step(wait_ms=100)
            rclpy.spin_once(bridge, timeout_sec=0)  # answers about parameters
    except KeyboardInterrupt:
        pass
    finally:
        bridge.destroy_node()
        rclpy.try_shutdown()
