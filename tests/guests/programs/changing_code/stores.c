/* Code that changes itself. A function stores to one of its own instructions and runs into it: the
 * processor must execute what was stored, however close it is (SDM Vol. 3, 12.1.3 and 12.6). */
#include "changing_code.h"

#include <string.h>

/* A function of (value, bytes): stores, and what is stored to. */
struct code {
    uint8_t store[40];
    int store_size;
    /* Where the distance of a store stands, and where its instruction ends. */
    int distance_at, distance_from;
    uint8_t target[96];
    int target_size;
    /* Which of the target's bytes is the first to be stored to. */
    int changed;
};

typedef uint64_t function(uint64_t value, const uint8_t *bytes);

static void add_store(struct code *code, const void *bytes, int size)
{
    memcpy(code->store + code->store_size, bytes, size);
    code->store_size += size;
}

/* An instruction that ends in the distance to what it stores to. */
static void add_distance(struct code *code, const void *bytes, int size)
{
    add_store(code, bytes, size);
    code->distance_at = code->store_size;
    code->store_size += 4;
    code->distance_from = code->store_size;
}

static void target(struct code *code, const void *bytes, int size, int changed)
{
    memcpy(code->target, bytes, size);
    code->target_size = size;
    code->changed = changed;
}

/* mov eax, imm32; ret */
static const uint8_t MOV_32[] = {0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3};
/* mov rax, imm64; ret */
static const uint8_t MOV_64[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xc3};

static void store_8(struct code *code)
{
    add_distance(code, "\x40\x88\x3d", 3); /* mov [rip+], dil */
    target(code, MOV_32, sizeof MOV_32, 1);
}

static void store_16(struct code *code)
{
    add_distance(code, "\x66\x89\x3d", 3); /* mov [rip+], di */
    target(code, MOV_32, sizeof MOV_32, 1);
}

static void store_32(struct code *code)
{
    add_distance(code, "\x89\x3d", 2); /* mov [rip+], edi */
    target(code, MOV_32, sizeof MOV_32, 1);
}

static void store_64(struct code *code)
{
    add_distance(code, "\x48\x89\x3d", 3); /* mov [rip+], rdi */
    target(code, MOV_64, sizeof MOV_64, 2);
}

static void exchange(struct code *code)
{
    add_distance(code, "\x48\x87\x3d", 3); /* xchg [rip+], rdi, which locks */
    target(code, MOV_64, sizeof MOV_64, 2);
}

static void add_to_memory(struct code *code)
{
    add_distance(code, "\x01\x3d", 2); /* add [rip+], edi */
    target(code, MOV_32, sizeof MOV_32, 1);
}

static void vector(struct code *code)
{
    add_store(code, "\x0f\x10\x06", 3);    /* movups xmm0, [rsi] */
    add_distance(code, "\x0f\x11\x05", 3); /* movups [rip+], xmm0 */
    target(code, MOV_64, sizeof MOV_64, 0);
    code->target_size = 16;
}

static void string(struct code *code)
{
    add_distance(code, "\x48\x8d\x3d", 3); /* lea rdi, [rip+] */
    add_store(code, "\xb9\x0b\0\0\0", 5);  /* mov ecx, 11 */
    add_store(code, "\xf3\xa4", 2);        /* rep movsb */
    target(code, MOV_64, sizeof MOV_64, 0);
}

static void push(struct code *code)
{
    add_store(code, "\x48\x89\xe0", 3);    /* mov rax, rsp */
    add_distance(code, "\x48\x8d\x25", 3); /* lea rsp, [rip+] */
    add_store(code, "\x57", 1);            /* push rdi */
    add_store(code, "\x48\x89\xc4", 3);    /* mov rsp, rax */
    target(code, MOV_64, sizeof MOV_64, 2);
    code->distance_from -= 8; /* PUSH counts down first. */
}

/* Another instruction each time. */
static void opcode(struct code *code)
{
    add_store(code, "\x89\xf0", 2);    /* mov eax, esi */
    add_distance(code, "\x89\x3d", 2); /* mov [rip+], edi */
    target(code, "\x90\x90\x90\x90\xc3", 5, 0);
}

/* Another destination each time. */
static void jump(struct code *code)
{
    add_distance(code, "\x40\x88\x3d", 3); /* mov [rip+], dil */
    uint8_t table[2 + 8 * 6] = {0xeb};     /* jmp rel8 */
    for (int i = 0; i < 8; i++)
        memcpy(table + 2 + i * 6, (uint8_t[]){0xb8, i, 0, 0, 0, 0xc3}, 6);
    target(code, table, sizeof table, 1);
}

static const struct {
    const char *name;
    void (*make)(struct code *);
} KINDS[] = {
    {"1 byte", store_8},   {"2 bytes", store_16},  {"4 bytes", store_32},
    {"8 bytes", store_64}, {"exchange", exchange}, {"addition", add_to_memory},
    {"vector", vector},    {"string", string},     {"push", push},
    {"opcode", opcode},    {"jump", jump},
};

/* Where the target begins in two pages: it lies within a cache line, begins another one than the store
 * is in, ends the page, spans both, begins the second. */
static const int OFFSETS[] = {1000, 1026, PAGE - 16, PAGE - 3, PAGE};
/* How many bytes are between store and target. */
static const int GAPS[] = {0, 3, 24, 200};

/* Puts the function into two pages; returns its first byte. */
static uint8_t *place(const struct code *code, uint8_t *pages, int offset, int gap)
{
    uint8_t *to = pages + offset, *from = to - gap - code->store_size;
    memcpy(from, code->store, code->store_size);
    int32_t distance = code->store_size - code->distance_from + gap + code->changed;
    memcpy(from + code->distance_at, &distance, 4);
    memset(to - gap, 0x90, gap); /* nop */
    if (gap > 32) {
        int32_t skip = gap - 5;
        to[-gap] = 0xe9; /* jmp rel32 */
        memcpy(to - gap + 1, &skip, 4);
        memset(to - gap + 5, 0xcc, gap - 5); /* int3 */
    }
    memcpy(to, code->target, code->target_size);
    return from;
}

/* Calls it with a new value; what it must return follows from what is in memory. */
static void call(int kind, const uint8_t *at, const uint8_t *to, uint64_t detail)
{
    uint64_t value = any(), wanted;
    uint8_t bytes[16] = {0};
    uint32_t before;
    memcpy(&before, to + 1, 4);
    memcpy(bytes, MOV_64, sizeof MOV_64);
    memcpy(bytes + 2, &value, 8);
    const uint8_t *argument = bytes;
    if (KINDS[kind].make == store_8)
        wanted = (before & ~0xffu) | (value & 0xff);
    else if (KINDS[kind].make == store_16)
        wanted = (before & ~0xffffu) | (value & 0xffff);
    else if (KINDS[kind].make == store_32)
        wanted = (uint32_t)value;
    else if (KINDS[kind].make == add_to_memory)
        wanted = before + (uint32_t)value;
    else if (KINDS[kind].make == jump) {
        wanted = value % 8;
        value = wanted * 6;
    } else if (KINDS[kind].make == opcode) {
        /* Of EAX and a byte: add, sub, xor, and imul, which has no NOP's place to be told. */
        static const uint8_t OPCODES[4][2] = {{0x83, 0xc0}, {0x83, 0xe8}, {0x83, 0xf0}, {0x6b, 0xc0}};
        uint32_t left = value >> 32, right = value & 0x7f;
        const uint32_t results[4] = {left + right, left - right, left ^ right, left * right};
        int which = value >> 8 & 3;
        wanted = results[which];
        value = 0x90000000 | right << 16 | OPCODES[which][1] << 8 | OPCODES[which][0];
        argument = (const uint8_t *)(uintptr_t)left;
    } else
        wanted = value;
    expect(((function *)at)(value, argument), wanted, KINDS[kind].name, detail);
}

uint64_t itself(void)
{
    /* An engine looks at code some dozen times before it does more than interpret it. */
    enum { UNITS = 2, CALLS = 64 + VERSIONS };
    uint64_t rounds = 0;
    for (int kind = 0; kind < (int)(sizeof KINDS / sizeof *KINDS); kind++)
        for (int i = 0; i < (int)(sizeof OFFSETS / sizeof *OFFSETS); i++)
            for (int j = 0; j < (int)(sizeof GAPS / sizeof *GAPS); j++)
                for (int unit = 0; unit < UNITS; unit++) {
                    struct code code = {0};
                    KINDS[kind].make(&code);
                    uint8_t *pages = fresh(2);
                    uint8_t *at = place(&code, pages, OFFSETS[i], GAPS[j]);
                    for (int k = 0; k < CALLS; k++, rounds++)
                        call(kind, at, pages + OFFSETS[i], OFFSETS[i] * 1000 + GAPS[j]);
                }
    return rounds;
}

/* A function that counts in its own page, in the same cache line or another, and that changes from
 * counting up to counting down. */
uint64_t data_beside_code(void)
{
    static const int DISTANCES[] = {8, 40, 64, 100, 1000, -16, -64, -1000};
    enum { PAGES = 8, CALLS = 60 };
    uint64_t rounds = 0;
    for (int i = 0; i < (int)(sizeof DISTANCES / sizeof *DISTANCES); i++)
        for (int page = 0; page < PAGES; page++) {
            uint8_t *at = fresh(1) + 2048 + page * 8;
            /* inc dword [rip+]; mov eax, [rip+]; ret: behind that, or before it, is the count. */
            uint8_t code[13] = {0xff, 0x05, 0, 0, 0, 0, 0x8b, 0x05, 0, 0, 0, 0, 0xc3};
            int32_t place = DISTANCES[i] > 0 ? DISTANCES[i] + 8 : DISTANCES[i];
            int32_t first = place - 6, second = place - 12;
            memcpy(code + 2, &first, 4);
            memcpy(code + 8, &second, 4);
            memcpy(at, code, sizeof code);
            uint32_t count = 0;
            for (int version = 0; version < VERSIONS; version++) {
                at[1] = version % 2 ? 0x0d : 0x05; /* dec, inc */
                for (int k = 0; k < CALLS; k++) {
                    count += version % 2 ? -1 : 1;
                    expect(((function *)at)(0, 0), count, "distance", DISTANCES[i]);
                }
                rounds++;
            }
        }
    return rounds;
}

/* One page that changes all the time. */
uint64_t one_page(void)
{
    enum { CHANGES = 5000 };
    uint8_t *page = fresh(1);
    write_hot(page, 1);
    for (uint32_t i = 0; i < CHANGES; i++) {
        uint32_t number = any();
        memcpy(page + HOT_NUMBER, &number, 4);
        run_hot(page, number, "change", i);
    }
    return CHANGES;
}
