/*
 * The first and only program of a small guest. It loads the drivers of the socket device, and answers,
 * line by line, what is said to it at port 5000 of that device and at its console:
 *
 *   count    how many lines it has answered, this one included
 *   stir N   the same, after it has changed N pages of its memory; which ones follows from the count
 *   sum      the same, and a sum over that memory
 *
 * So whoever talks to it knows whether it is where it was, and has all that it had.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define PORT 5000
#define PAGE 4096
#define PAGES 4096

static uint64_t memory[PAGES][PAGE / 8];
static uint64_t count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* SplitMix64. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static void stir(unsigned long pages)
{
    for (unsigned long i = 0; i < pages; i++) {
        uint64_t value = mix(count << 20 ^ i);
        memory[value % PAGES][value / PAGES % (PAGE / 8)] = value;
    }
}

static uint64_t sum(void)
{
    uint64_t sum = 0;
    for (int page = 0; page < PAGES; page++)
        for (int at = 0; at < PAGE / 8; at++)
            sum = sum * 31 + memory[page][at];
    return sum;
}

static void answer(FILE *in, FILE *out)
{
    char line[256];
    while (fgets(line, sizeof line, in)) {
        pthread_mutex_lock(&lock);
        count++;
        if (!strncmp(line, "stir ", 5))
            stir(strtoul(line + 5, NULL, 10));
        if (!strncmp(line, "sum", 3))
            fprintf(out, "%lu %016lx\n", count, sum());
        else
            fprintf(out, "%lu\n", count);
        pthread_mutex_unlock(&lock);
        fflush(out);
    }
}

static void *serve(void *connection)
{
    int fd = (intptr_t)connection;
    FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
    if (in && out)
        answer(in, out);
    if (in)
        fclose(in);
    if (out)
        fclose(out);
    return NULL;
}

static void *listen_for_hosts(void *socket)
{
    for (;;) {
        int fd = accept((intptr_t)socket, NULL, NULL);
        pthread_t thread;
        if (fd < 0)
            continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd))
            close(fd);
        else
            pthread_detach(thread);
    }
    return NULL;
}

/* Drivers are in files 0.ko, 1.ko and so on, in an order in which they can be loaded. */
static void load_drivers(void)
{
    for (int n = 0;; n++) {
        char name[32];
        snprintf(name, sizeof name, "/modules/%d.ko", n);
        int fd = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return;
        if (syscall(SYS_finit_module, fd, "", 0))
            perror(name);
        close(fd);
    }
}

int main(void)
{
    struct termios terminal;
    if (!tcgetattr(STDIN_FILENO, &terminal)) {
        terminal.c_lflag &= ~ECHO;
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
    load_drivers();
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT
    };
    pthread_t thread;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 16))
        perror("no socket");
    else if (pthread_create(&thread, NULL, listen_for_hosts, (void *)(intptr_t)fd))
        perror("no thread");
    printf("ready\n");
    fflush(stdout);
    answer(stdin, stdout);
    /* The first program must not end. */
    for (;;)
        pause();
}
