/* Print each utterance's JSON as it comes.
 *     sudo apt-get install libzmq3-dev
 *     cc -Wall -O2 -o subscribe subscribe.c $(pkg-config --cflags --libs libzmq) && ./subscribe
 */
#include <stdio.h>
#include <zmq.h>

int main(void)
{
    void *context = zmq_ctx_new();
    void *socket = zmq_socket(context, ZMQ_SUB);
    if (zmq_connect(socket, "tcp://127.0.0.1:5556") != 0) {
        fprintf(stderr, "cannot connect: %s\n", zmq_strerror(zmq_errno()));
        return 1;
    }
    zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "emotion.utterance.", 18); /* a prefix: every stream */

    zmq_msg_t part;
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, socket, 0) >= 0) {
        if (zmq_msg_more(&part)) /* the first part is the topic, the second the JSON */
            continue;
        fwrite(zmq_msg_data(&part), 1, zmq_msg_size(&part), stdout);
        putchar('\n');
        fflush(stdout);
    }
    zmq_msg_close(&part);
    zmq_close(socket);
    zmq_ctx_destroy(context);
    return 0;
}
