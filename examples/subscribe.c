/* Print each utterance's JSON as it comes.
 *     sudo apt-get install libzmq3-dev
 *     cc -Wall -O2 -o subscribe subscribe.c $(pkg-config --cflags --libs libzmq)
 *     ./subscribe [ENDPOINT [KEY_FILE]]
 */
#include <stdio.h>
#include <string.h>
#include <zmq.h>

/* Set the keys in a file of stream-keys new client: lines like public-key = "…", 40 characters each. */
static int set_keys(void *socket, const char *path)
{
    char line[256], name[8], key[41];
    int set = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return -1;
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "%7[a-z]-key = \"%40[^\"]\"", name, key) != 2)
            continue;
        int option = strcmp(name, "public") == 0 ? ZMQ_CURVE_PUBLICKEY
                   : strcmp(name, "secret") == 0 ? ZMQ_CURVE_SECRETKEY : ZMQ_CURVE_SERVERKEY;
        set += zmq_setsockopt(socket, option, key, strlen(key) + 1) == 0;
    }
    fclose(file);
    return set == 3 ? 0 : -1;
}

int main(int argc, char **argv)
{
    const char *endpoint = argc > 1 ? argv[1] : "tcp://127.0.0.1:5556";
    void *context = zmq_ctx_new();
    void *socket = zmq_socket(context, ZMQ_SUB);
    if (argc > 2 && set_keys(socket, argv[2]) != 0) {
        fprintf(stderr, "%s: not a client's key file that holds the pipeline's public key\n", argv[2]);
        return 1;
    }
    if (zmq_connect(socket, endpoint) != 0) {
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
