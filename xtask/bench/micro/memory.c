/* Workloads that move data. All in 4 KiB pages, whatever this kernel would do on its own. */
#define _GNU_SOURCE
#include "micro.h"

#include <string.h>
#include <sys/mman.h>

enum { MIB = 1 << 20 };

static void *allocate(size_t bytes)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        give_up("mmap");
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < bytes; i += 4096)
        memory[i] = 1;
    return memory;
}

static inline uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* memcpy of 32 MiB. */
uint64_t copy(uint64_t count)
{
    enum { BYTES = 32 * MIB };
    uint64_t *from = allocate(BYTES), *to = allocate(BYTES), sum = 0;
    for (uint64_t i = 0; i < BYTES / 8; i++)
        from[i] = i * 0x9e3779b97f4a7c15u;
    begin();
    for (uint64_t i = 0; i < count; i++) {
        from[i % (BYTES / 8)] += i;
        memcpy(to, from, BYTES);
        sum += to[(i * 4099) % (BYTES / 8)];
    }
    return sum;
}

/* Reads and writes at random places, which do not wait for each other. */
static uint64_t random_access(uint64_t count, uint64_t bytes)
{
    uint64_t *memory = allocate(bytes), words = bytes / 8;
    uint64_t state = 88172645463325252u, sum = 0;
    begin();
    for (uint64_t i = 0; i < count; i++) {
        uint64_t place = next(&state) % words;
        sum += memory[place];
        memory[place] = sum ^ i;
    }
    return sum;
}

uint64_t random_16(uint64_t count)
{
    return random_access(count, 16 * MIB);
}

uint64_t random_64(uint64_t count)
{
    return random_access(count, 64 * MIB);
}

uint64_t random_256(uint64_t count)
{
    return random_access(count, 256 * MIB);
}
