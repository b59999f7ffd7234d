/* Workloads that talk to the server of this benchmark (xtask/src/bench/server.rs). */
#define _GNU_SOURCE
#include "micro.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, CHUNKS_PER_MIB = 16 };

static char chunk[CHUNK];

static void send_all(int connection, const void *bytes, size_t count)
{
    for (const char *at = bytes; count > 0;) {
        ssize_t sent = write(connection, at, count);
        if (sent <= 0)
            give_up("write to the server");
        at += sent;
        count -= (size_t)sent;
    }
}

/* Connects to $SERVER, ADDRESS:PORT, and tells it how many bytes go which way: 's' or 'r'. */
static int connect_to_server(char way, uint64_t bytes)
{
    const char *server = getenv("SERVER");
    const char *port = server ? strchr(server, ':') : NULL;
    char address[INET_ADDRSTRLEN] = "";
    struct sockaddr_in to = {.sin_family = AF_INET};
    if (!port || (size_t)(port - server) >= sizeof address)
        give_up("SERVER");
    memcpy(address, server, (size_t)(port - server));
    to.sin_port = htons((uint16_t)atoi(port + 1));
    int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connection < 0 ||
        connect(connection, (struct sockaddr *)&to, sizeof to) != 0)
        give_up("connect");
    send_all(connection, &way, 1);
    send_all(connection, &bytes, sizeof bytes);
    return connection;
}

/* `count` MiB to the server, which says how much came. */
uint64_t net_send(uint64_t count)
{
    uint64_t came;
    int connection = connect_to_server('s', count << 20);
    begin();
    for (uint64_t i = 0; i < count * CHUNKS_PER_MIB; i++)
        send_all(connection, chunk, CHUNK);
    if (recv(connection, &came, sizeof came, MSG_WAITALL) != sizeof came)
        give_up("read from the server");
    end();
    close(connection);
    return came;
}

/* `count` MiB from the server. */
uint64_t net_receive(uint64_t count)
{
    uint64_t came = 0;
    int connection = connect_to_server('r', count << 20);
    begin();
    for (;;) {
        ssize_t got = read(connection, chunk, CHUNK);
        if (got < 0)
            give_up("read from the server");
        if (got == 0)
            break;
        came += (uint64_t)got;
    }
    end();
    close(connection);
    return came;
}
