"""Print each utterance's label as it comes.   pip install pyzmq && python subscribe.py [ENDPOINT [KEY_FILE]]"""

import json
import re
import sys

import zmq

endpoint, *key_file = sys.argv[1:] or ["tcp://127.0.0.1:5556"]
socket = zmq.Context().socket(zmq.SUB)
if key_file:  # of stream-keys new client
    with open(key_file[0], encoding="utf-8") as file:
        keys = dict(re.findall(r'(\w+)-key = "(.{40})"', file.read()))
    socket.curve_publickey, socket.curve_secretkey = keys["public"].encode(), keys["secret"].encode()
    socket.curve_serverkey = keys["server"].encode()
socket.connect(endpoint)
socket.subscribe(b"emotion.utterance.")  # a prefix: every stream; "emotion.window." has the running estimates
while True:
    topic, body = socket.recv_multipart()
    u = json.loads(body)
    print(f"{u['start_s']:7.2f} {u['end_s']:7.2f}  {u['label']:<9} {u['confidence']:.2f}  {u['text']}", flush=True)
