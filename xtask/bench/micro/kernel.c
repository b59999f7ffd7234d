/* Workloads that keep the kernel busy. */
#define _GNU_SOURCE
#include "micro.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void expect_success(pid_t child)
{
    int status;
    if (child < 0)
        give_up("fork");
    if (waitpid(child, &status, 0) != child || status != 0)
        give_up("a child failed");
}

/* A program that does nothing, started and waited for. */
uint64_t fork_exec(uint64_t count)
{
    begin();
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(127);
        }
        expect_success(child);
    }
    return count;
}

/* A process that ends at once. */
uint64_t fork_wait(uint64_t count)
{
    begin();
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        expect_success(child);
    }
    return count;
}

/* The first write to each page of 16 MiB of fresh memory. */
uint64_t faults(uint64_t count)
{
    enum { BYTES = 16 << 20 };
    uint64_t sum = 0;
    begin();
    for (uint64_t i = 0; i < count; i++) {
        char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || madvise(memory, BYTES, MADV_NOHUGEPAGE) != 0)
            give_up("mmap");
        for (int page = 0; page < BYTES; page += 4096) {
            memory[page] += 1;
            sum += memory[page];
        }
        munmap(memory, BYTES);
    }
    return sum;
}

/* One byte to another process and back. */
uint64_t pipes(uint64_t count)
{
    int there[2], back[2];
    if (pipe(there) != 0 || pipe(back) != 0)
        give_up("pipe");
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    close(there[0]);
    uint64_t sum = 0;
    begin();
    for (uint64_t i = 0; i < count; i++) {
        char byte = (char)i;
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            give_up("pipe");
        sum = sum * 31 + (unsigned char)byte;
    }
    end();
    close(there[1]);
    expect_success(child);
    return sum;
}

/* A system call that does nearly nothing. */
uint64_t getppids(uint64_t count)
{
    pid_t parent = getppid();
    uint64_t same = 0;
    begin();
    for (uint64_t i = 0; i < count; i++)
        same += syscall(SYS_getppid) == parent;
    return same;
}
