/* micro WORKLOAD COUNT: prints what the workload computed and how long it took. */
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *name;
    workload *run;
} WORKLOADS[] = {
    {"integers", integers},   {"recursion", recursion}, {"doubles", doubles},
    {"matrix", matrix},       {"copy", copy},           {"random-16", random_16},
    {"random-64", random_64}, {"random-256", random_256},   {"fork-exec", fork_exec},
    {"fork-wait", fork_wait}, {"faults", faults},       {"pipes", pipes},
    {"getppid", getppids},    {"net-send", net_send},   {"net-receive", net_receive},
};

static struct timespec begun, ended;

void begin(void)
{
    clock_gettime(CLOCK_MONOTONIC, &begun);
}

void end(void)
{
    clock_gettime(CLOCK_MONOTONIC, &ended);
}

void give_up(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 3 && i < sizeof WORKLOADS / sizeof *WORKLOADS; i++) {
        if (strcmp(argv[1], WORKLOADS[i].name) != 0)
            continue;
        uint64_t result = WORKLOADS[i].run(strtoull(argv[2], NULL, 10));
        if (ended.tv_sec == 0)
            end();
        double seconds =
            (ended.tv_sec - begun.tv_sec) + (ended.tv_nsec - begun.tv_nsec) * 1e-9;
        FILE *file = fopen("result", "w");
        if (!file || fprintf(file, "%016" PRIx64 "\n", result) < 0 || fclose(file) != 0)
            give_up("result");
        printf("seconds %.9f\n", seconds);
        return 0;
    }
    fprintf(stderr, "usage: micro WORKLOAD COUNT\n");
    return 2;
}
