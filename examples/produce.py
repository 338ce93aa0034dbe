"""Send a recording as a robot would send its microphone: a block of sound every 20 ms, with its time.

stream-run --stream robot=zmq:tcp://127.0.0.1:6000
pip install pyzmq && python produce.py RECORDING.wav [ENDPOINT]
"""

import json
import sys
import time
import wave

import zmq

endpoint = (sys.argv[2:] or ["tcp://127.0.0.1:6000"])[0]
socket = zmq.Context().socket(zmq.PUSH)
socket.sndhwm = 50  # a second; if nobody listens, send waits
socket.connect(endpoint)
with wave.open(sys.argv[1], "rb") as recording:
    assert recording.getsampwidth() == 2, "16-bit samples are expected"
    rate, channels, block = recording.getframerate(), recording.getnchannels(), recording.getframerate() // 50
    begun = time.time()
    for seq in range(1 + recording.getnframes() // block):
        begins = begun + seq * block / rate  # Unix time of the block's first sample
        time.sleep(max(0, begins + block / rate - time.time()))  # until its last one has been "recorded"
        header = {"type": "audio", "rate": rate, "channels": channels, "format": "s16le", "time": begins, "seq": seq}
        if samples := recording.readframes(block):
            socket.send_multipart([json.dumps(header).encode(), samples])
time.sleep(1)  # the last words are followed by silence, which ends them
socket.send(json.dumps({"type": "end"}).encode())
