// Send 16-bit mono sound from standard input, as it comes, to stream-run --stream robot=zmq:tcp://127.0.0.1:6000
//
//     g++ -std=c++17 -O2 produce.cpp -o produce -lzmq         (Debian: apt-get install g++ libzmq3-dev)
//     arecord -f S16_LE -r 16000 -c 1 -t raw | ./produce [ENDPOINT]

#include <zmq.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

int main(int argc, char** argv) {
    const char* endpoint = argc > 1 ? argv[1] : "tcp://127.0.0.1:6000";
    const int rate = 16000, block = rate / 50;  // 20 ms
    void* context = zmq_ctx_new();
    void* socket = zmq_socket(context, ZMQ_PUSH);
    if (zmq_connect(socket, endpoint) != 0) {
        std::fprintf(stderr, "%s: %s\n", endpoint, zmq_strerror(zmq_errno()));
        return 1;
    }
    std::vector<short> samples(block);
    for (long seq = 0;; ++seq) {
        size_t count = std::fread(samples.data(), sizeof(short), samples.size(), stdin);
        if (count == 0) break;
        std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
        char header[160];  // "time": of the first sample, which was recorded before the last one
        std::snprintf(header, sizeof header,
                      "{\"type\":\"audio\",\"rate\":%d,\"channels\":1,\"format\":\"s16le\",\"time\":%.6f,\"seq\":%ld}",
                      rate, now.count() - double(count) / rate, seq);
        zmq_send(socket, header, std::strlen(header), ZMQ_SNDMORE);
        zmq_send(socket, samples.data(), count * sizeof(short), 0);
    }
    const std::string end = "{\"type\":\"end\"}";
    zmq_send(socket, end.data(), end.size(), 0);
    zmq_close(socket);
    zmq_ctx_destroy(context);
    return 0;
}
