/* Small workloads that measure one thing each. */
#ifndef MICRO_H
#define MICRO_H

#include <stdint.h>

/* Each does its work `count` times and returns something that depends on all of it. */
typedef uint64_t workload(uint64_t count);

/* processor.c */
workload integers, recursion, doubles, matrix;
/* memory.c */
workload copy, random_16, random_64, random_256;
/* kernel.c */
workload fork_exec, fork_wait, faults, pipes, getppids;

/* network.c */
workload net_send, net_receive;

/* Starts the clock: called by each workload when what it needs is prepared. */
void begin(void);
/* Stops it; optional, if something is left to do that does not count. */
void end(void);
/* Ends the program with a message. */
void give_up(const char *what) __attribute__((noreturn));

#endif
