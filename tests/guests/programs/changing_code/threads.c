/* Code that one thread changes and another one runs, on another processor if there is one. */
#define _GNU_SOURCE
#include "changing_code.h"

#include <cpuid.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGES = 24, ROUNDS = PAGES * VERSIONS };

/* The last round for which code was written, and the last one whose code was run. */
static _Atomic uint64_t written, ran;
/* Where the rounds have their code. */
static uint8_t *pages;
static int processors;

static void prefer(int processor)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor % processors, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        give_up("sched_setaffinity");
}

/* Lets the other thread work, should they share a processor. */
static void pause_here(void)
{
    if (processors == 1)
        sched_yield();
    else
        __builtin_ia32_pause();
}

static uint64_t latest(const _Atomic uint64_t *round)
{
    return atomic_load_explicit(round, memory_order_acquire);
}

static void tell(_Atomic uint64_t *round, uint64_t value)
{
    atomic_store_explicit(round, value, memory_order_release);
}

static void wait_for(const _Atomic uint64_t *round, uint64_t value)
{
    while (latest(round) < value)
        pause_here();
}

/* What the code of a round adds. */
static uint32_t number_of(uint64_t round)
{
    return (uint32_t)(round * 2654435761);
}

/* Has one thread write code, round by round, and another one run it. */
static uint64_t take_turns(void (*write)(uint64_t round), void *(*run)(void *))
{
    pthread_t runner;
    processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
    pages = fresh(PAGES);
    written = ran = 0;
    prefer(0);
    if (pthread_create(&runner, NULL, run, NULL) != 0)
        give_up("pthread_create");
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        write(round);
        wait_for(&ran, round);
    }
    pthread_join(runner, NULL);
    return ROUNDS;
}

/* Cross-modifying code as the manual has it (SDM Vol. 3, 9.1.3): the runner waits while code is
 * written, and executes a serializing instruction before it runs it. */
static uint8_t *place_for_a_while(uint64_t round)
{
    return pages + (round - 1) / VERSIONS * PAGE + 1024;
}

static void write_in_place(uint64_t round)
{
    write_hot(place_for_a_while(round), number_of(round));
    tell(&written, round);
}

static void *serialize_and_run(void *unused)
{
    prefer(1);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        wait_for(&written, round);
        unsigned a, b, c, d;
        __cpuid(0, a, b, c, d);
        run_hot(place_for_a_while(round), number_of(round), "round", round);
        tell(&ran, round);
    }
    return unused;
}

uint64_t handshake(void)
{
    return take_turns(write_in_place, serialize_and_run);
}

/* The runner runs the latest code all the time. The next is written to another page, and the kernel
 * has all processors serialize before it is the latest (membarrier(2)). */
static uint8_t *place_in_turn(uint64_t round)
{
    return pages + round % PAGES * PAGE + 64;
}

static void write_beside(uint64_t round)
{
    write_hot(place_in_turn(round), number_of(round));
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
        give_up("membarrier");
    tell(&written, round);
}

static void *run_latest(void *unused)
{
    prefer(1);
    wait_for(&written, 1);
    for (uint64_t round = 0; round < ROUNDS;) {
        round = latest(&written);
        run_hot(place_in_turn(round), number_of(round), "round", round);
        tell(&ran, round);
        pause_here();
    }
    return unused;
}

uint64_t barrier(void)
{
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
        give_up("membarrier");
    return take_turns(write_beside, run_latest);
}

/* An operand that is aligned is replaced by one store while the other thread runs it, as
 * just-in-time compilers do: they rely on it that either the old or the new one is executed, and
 * the new one before long. */
static void replace(uint64_t round)
{
    /* mov eax, imm32; ret: the operand is aligned. */
    uint8_t *at = place_for_a_while(round) + 3;
    if ((round - 1) % VERSIONS == 0)
        memcpy(at, (uint8_t[]){0xb8, 0, 0, 0, 0, 0xc3}, 6);
    __atomic_store_n((uint32_t *)(at + 1), (uint32_t)round, __ATOMIC_RELEASE);
    if ((round - 1) % VERSIONS == 0)
        tell(&written, round);
}

static void *follow(void *unused)
{
    prefer(1);
    for (uint64_t seen = 0; seen < ROUNDS;) {
        /* The page's first round is told: the page's others come without a word. */
        wait_for(&written, seen / VERSIONS * VERSIONS + 1);
        const uint8_t *at = place_for_a_while(seen + 1) + 3;
        for (int i = 0; i < HOT_TIMES; i++) {
            uint64_t version = ((uint32_t(*)(void))at)();
            /* The writer waits for us, round by round. */
            expect(version >= seen && version <= seen + 1 && version > 0, 1, "version", version);
            seen = version;
            if (seen % VERSIONS == 0)
                break;
        }
        tell(&ran, seen);
        pause_here();
    }
    return unused;
}

uint64_t atomically(void)
{
    return take_turns(replace, follow);
}
