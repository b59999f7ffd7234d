/* Code that is changed by way of something else than a store to where it is executed. */
#define _GNU_SOURCE
#include "changing_code.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of each scenario. */
enum { PAGES = 32 };

void write_hot(uint8_t *at, uint32_t number)
{
    static const uint8_t LOOP[] = {
        0x31, 0xc0,               /*    xor eax, eax */
        0xb9, HOT_TIMES, 0, 0, 0, /*    mov ecx, HOT_TIMES */
        0xe8, 0, 0, 0, 0,         /* 1: call 2f */
        0xff, 0xc9,               /*    dec ecx */
        0x75, 0xf7,               /*    jnz 1b */
        0xc3,                     /*    ret */
    };
    static const uint8_t BODY[] = {
        0xeb, 0x02,       /* 2: jmp 3f */
        0x0f, 0x0b,       /*    ud2 */
        0x05, 0, 0, 0, 0, /* 3: add eax, NUMBER */
        0xc3,             /*    ret */
    };
    uint8_t code[HOT_SIZE];
    int32_t body = HOT_NUMBER - 5, distance = body - 12;
    memset(code, 0xcc, sizeof code); /* int3 */
    memcpy(code, LOOP, sizeof LOOP);
    memcpy(code + 8, &distance, 4);
    memcpy(code + body, BODY, sizeof BODY);
    memcpy(code + HOT_NUMBER, &number, 4);
    memcpy(at, code, sizeof code);
}

void run_hot(const uint8_t *at, uint32_t number, const char *what, uint64_t detail)
{
    for (int i = 0; i < 2; i++)
        expect(((uint32_t(*)(void))at)(), number * HOT_TIMES, what, detail);
}

/* Where code is written, and where it is executed. */
struct view {
    uint8_t *written, *executed;
    int file;
};

typedef void writer(const struct view *, uint32_t number, size_t offset);

/* Has `write` change the function's number again and again, somewhere in each page. */
static uint64_t change(const struct view *view, writer *write)
{
    uint64_t rounds = 0;
    for (size_t page = 0; page < PAGES; page++) {
        size_t offset = page * PAGE + any() % ((PAGE - HOT_SIZE) / 8) * 8;
        for (int version = 0; version < VERSIONS; version++, rounds++) {
            uint32_t number = any();
            write(view, number, offset);
            run_hot(view->executed + offset, number, "page", page);
        }
    }
    return rounds;
}

static struct view one_view(void)
{
    uint8_t *pages = fresh(PAGES);
    return (struct view){pages, pages, -1};
}

/* The same pages at two addresses, each of which does not allow what the other is for. */
static struct view two_views(void)
{
    int file = memfd_create("code", 0);
    if (file < 0 || ftruncate(file, PAGES * PAGE) != 0)
        give_up("memfd_create");
    uint8_t *written =
        mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint8_t *executed = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    if (written == MAP_FAILED || executed == MAP_FAILED)
        give_up("mmap");
    return (struct view){written, executed, file};
}

static void write_all(const struct view *view, uint32_t number, size_t offset)
{
    write_hot(view->written + offset, number);
}

uint64_t plain(void)
{
    struct view view = one_view();
    return change(&view, write_all);
}

static void write_protected(const struct view *view, uint32_t number, size_t offset)
{
    uint8_t *page = view->written + offset / PAGE * PAGE;
    if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) != 0)
        give_up("mprotect");
    write_hot(view->written + offset, number);
    if (mprotect(page, PAGE, PROT_READ | PROT_EXEC) != 0)
        give_up("mprotect");
}

uint64_t protected(void)
{
    struct view view = one_view();
    return change(&view, write_protected);
}

/* The other address is written to before, too, until that is as quick as it gets. */
static void write_alias(const struct view *view, uint32_t number, size_t offset)
{
    volatile uint32_t *words = (uint32_t *)(view->written + offset);
    for (int i = 0; i < 200; i++)
        words[(HOT_NUMBER + 16) / 4] = i;
    write_hot(view->written + offset, number);
}

uint64_t alias(void)
{
    struct view view = two_views();
    return change(&view, write_alias);
}

static void write_file(const struct view *view, uint32_t number, size_t offset)
{
    uint8_t code[HOT_SIZE];
    write_hot(code, number);
    if (pwrite(view->file, code, sizeof code, offset) != sizeof code)
        give_up("pwrite");
}

uint64_t by_write(void)
{
    struct view view = two_views();
    return change(&view, write_file);
}

static void write_memory_file(const struct view *view, uint32_t number, size_t offset)
{
    uint8_t code[HOT_SIZE];
    write_hot(code, number);
    if (pwrite(view->file, code, sizeof code, (off_t)(uintptr_t)view->executed + offset) !=
        sizeof code)
        give_up("/proc/self/mem");
}

/* As a debugger does, past the protection of the page. */
uint64_t by_memory_file(void)
{
    struct view view = one_view();
    view.file = open("/proc/self/mem", O_RDWR);
    if (view.file < 0 || mprotect(view.executed, PAGES * PAGE, PROT_READ | PROT_EXEC) != 0)
        give_up("/proc/self/mem");
    return change(&view, write_memory_file);
}

static void vm_write(const struct view *view, uint32_t number, size_t offset)
{
    uint8_t code[HOT_SIZE];
    write_hot(code, number);
    struct iovec from = {code, sizeof code}, to = {view->executed + offset, sizeof code};
    if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) != sizeof code)
        give_up("process_vm_writev");
}

uint64_t by_vm_write(void)
{
    struct view view = one_view();
    return change(&view, vm_write);
}

/* Another page comes to the same address. */
uint64_t mapped_anew(void)
{
    enum { ROUNDS = 3000 };
    struct view view = two_views();
    for (uint32_t page = 0; page < PAGES; page++)
        write_hot(view.written + page * PAGE, page * page + 1);
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t page = any() % PAGES;
        if (mmap(view.executed, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, view.file,
                 page * PAGE) == MAP_FAILED)
            give_up("mmap");
        run_hot(view.executed, page * page + 1, "page", page);
    }
    return ROUNDS;
}

static void run_where(const uint8_t *at, uint64_t detail)
{
    for (int i = 0; i < HOT_TIMES; i++)
        expect(((uint64_t(*)(void))at)(), (uintptr_t)at, "page", detail);
}

/* The same page comes to another address, and code that asks where it is must be told. */
uint64_t moved(void)
{
    enum { ROUNDS = 1500, PLACES = 64 };
    /* lea rax, [rip-7]; ret */
    static const uint8_t CODE[] = {0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc3};
    struct view view = two_views();
    for (int page = 0; page < PAGES; page++)
        memcpy(view.written + page * PAGE + 64, CODE, sizeof CODE);
    uint8_t *places = mmap(NULL, PLACES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (places == MAP_FAILED)
        give_up("mmap");
    uint64_t place = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int page = any() % PAGES;
        uint8_t *at = places + place * PAGE;
        if (mmap(at, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, view.file,
                 page * PAGE) == MAP_FAILED)
            give_up("mmap");
        run_where(at + 64, page);
        place = (place + 1 + any() % (PLACES - 1)) % PLACES;
        at = mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, places + place * PAGE);
        if (at == MAP_FAILED)
            give_up("mremap");
        run_where(at + 64, page);
    }
    return ROUNDS;
}

/* A child changes its copy of a page; its parent's stays. */
uint64_t forked(void)
{
    enum { CHILDREN = 100 };
    uint8_t *page = fresh(1);
    write_hot(page, 1);
    for (uint32_t i = 0; i < CHILDREN; i++) {
        run_hot(page, i + 1, "parent before", i);
        pid_t child = fork();
        if (child == 0) {
            run_hot(page, i + 1, "child before", i);
            write_hot(page, ~i);
            run_hot(page, ~i, "child", i);
            _exit(0);
        }
        /* Whichever is first makes the copy. */
        if (i % 2)
            write_hot(page, i + 2);
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) != child)
            give_up("fork");
        expect(status, 0, "child's status", i);
        run_hot(page, i % 2 ? i + 2 : i + 1, "parent", i);
        write_hot(page, i + 2);
    }
    return CHILDREN;
}

/* A device writes code. Each sector of the disk has the function, with the sector's number; one
 * page holds eight of them, of which one is replaced at a time. */
uint64_t from_disk(void)
{
    enum { SECTOR = 512, SECTORS = 4096, IN_PAGE = PAGE / SECTOR };
    int disk = open("/dev/disk/by-id/virtio-code", O_RDONLY | O_DIRECT);
    if (disk < 0)
        give_up("the disk");
    uint8_t *pages = fresh(PAGES);
    uint64_t rounds = 0;
    for (int page = 0; page < PAGES; page++) {
        uint8_t *at = pages + page * PAGE;
        uint32_t numbers[IN_PAGE];
        for (int version = -IN_PAGE; version < VERSIONS; version++, rounds++) {
            uint32_t sector = any() % SECTORS;
            int slot = version < 0 ? version + IN_PAGE : (int)(any() % IN_PAGE);
            uint8_t *to = at + slot * SECTOR;
            if (pread(disk, to, SECTOR, (off_t)sector * SECTOR) != SECTOR)
                give_up("read");
            numbers[slot] = sector;
            for (int i = 0; version >= 0 && i < IN_PAGE; i++)
                run_hot(at + i * SECTOR, numbers[i], "slot", i);
        }
    }
    close(disk);
    return rounds;
}

/* The kernel makes code of a program of ours: how much of a packet to let through. */
uint64_t packet_filters(void)
{
    enum { FILTERS = 1500, LONGEST = 200 };
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0)
        give_up("socketpair");
    char packet[LONGEST] = {0};
    for (int i = 0; i < FILTERS; i++) {
        uint32_t length = 1 + any() % (LONGEST - 1), mark = any() % 256;
        /* A packet that begins with the mark is cut to the length, another one to 1 byte. */
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, mark, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, length),
            BPF_STMT(BPF_RET | BPF_K, 1),
        };
        struct sock_fprog program = {sizeof code / sizeof *code, code};
        if (setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
            give_up("SO_ATTACH_FILTER");
        for (int k = 0; k < 6; k++) {
            packet[0] = (char)(k % 2 ? mark ^ 1 : mark);
            if (send(ends[0], packet, sizeof packet, 0) != sizeof packet)
                give_up("send");
            ssize_t got = recv(ends[1], packet, sizeof packet, 0);
            expect((uint64_t)got, k % 2 ? 1 : length, "filter", i);
        }
    }
    close(ends[0]);
    close(ends[1]);
    return FILTERS;
}
