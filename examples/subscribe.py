"""Print each utterance's label as it comes.   pip install pyzmq && python subscribe.py"""

import json

import zmq

socket = zmq.Context().socket(zmq.SUB)
socket.connect("tcp://127.0.0.1:5556")
socket.subscribe(b"emotion.utterance.")  # a prefix: every stream; "emotion.window." has the running estimates
while True:
    topic, body = socket.recv_multipart()
    u = json.loads(body)
    print(f"{u['start_s']:7.2f} {u['end_s']:7.2f}  {u['label']:<9} {u['confidence']:.2f}  {u['text']}", flush=True)
