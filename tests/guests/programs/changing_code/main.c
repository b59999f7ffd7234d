/* changing_code: runs all scenarios and says of each how many rounds it had. A scenario that fails
 * says why and ends the program with status 1. */
#include "changing_code.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct {
    const char *name;
    scenario *run;
} SCENARIOS[] = {
    {"itself", itself},
    {"data-beside-code", data_beside_code},
    {"one-page", one_page},
    {"plain", plain},
    {"protected", protected},
    {"alias", alias},
    {"by-write", by_write},
    {"by-memory-file", by_memory_file},
    {"by-vm-write", by_vm_write},
    {"mapped-anew", mapped_anew},
    {"moved", moved},
    {"forked", forked},
    {"from-disk", from_disk},
    {"packet-filters", packet_filters},
    {"handshake", handshake},
    {"barrier", barrier},
    {"atomically", atomically},
};

/* A scenario that takes longer than this hangs. */
enum { PATIENCE = 300 };

static const char *current = "";

void give_up(const char *what)
{
    printf("%s: %s: %s\n", current, what, strerror(errno));
    fflush(stdout);
    _exit(2);
}

void expect(uint64_t got, uint64_t wanted, const char *what, uint64_t detail)
{
    if (got == wanted)
        return;
    printf("%s: %s (%" PRIu64 "): ran code of %#" PRIx64 " where it should be %#" PRIx64 "\n",
           current, what, detail, got, wanted);
    fflush(stdout);
    _exit(1);
}

uint8_t *fresh(size_t pages)
{
    uint8_t *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED)
        give_up("mmap");
    return at;
}

uint64_t any(void)
{
    static uint64_t state = 88172645463325252;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof SCENARIOS / sizeof *SCENARIOS; i++) {
        current = SCENARIOS[i].name;
        if (argc == 2 && strcmp(argv[1], current) != 0)
            continue;
        /* Said before: what it does may end the program at once. */
        printf("%s: ", current);
        fflush(stdout);
        alarm(PATIENCE);
        uint64_t rounds = SCENARIOS[i].run();
        printf("%" PRIu64 " rounds\n", rounds);
        fflush(stdout);
    }
    return 0;
}
