/*
 * A 32-bit program that needs no library, not even of the host's: what it prints, the test knows.
 *
 * Its numbers are made by what compilers make of ordinary C for the i386: stack frames, calls by
 * pointers, bytes of registers, arithmetic of 64 bits by halves; and by what they rarely make:
 * thread-local storage, pushes of all registers, decimal arithmetic.
 */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

static int system_call(int number, int a, const void *b, int c)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c)
			 : "memory");
	return result;
}

enum { EXIT = 1, WRITE = 4, SET_THREAD_AREA = 243 };

/* The compiler may call it. */
void *memcpy(void *to, const void *from, unsigned int count)
{
	void *result = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
	return result;
}

static void say(const char *name, const u8 *bytes, int count)
{
	static const char digits[] = "0123456789abcdef";
	char line[128];
	int length = 0;

	while (*name)
		line[length++] = *name++;
	line[length++] = ' ';
	for (int i = 0; i < count; i++) {
		line[length++] = digits[bytes[i] >> 4];
		line[length++] = digits[bytes[i] & 15];
	}
	line[length++] = '\n';
	system_call(WRITE, 1, line, length);
}

static void say_number(const char *name, u64 number)
{
	u8 bytes[8];

	for (int i = 0; i < 8; i++)
		bytes[i] = number >> (56 - 8 * i);
	say(name, bytes, 8);
}

/* SHA-256 (FIPS 180-4). */

static const u32 constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static const u32 initial[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline u32 rotate(u32 x, int by)
{
	return x >> by | x << (32 - by);
}

static void hash_block(u32 *state, const u8 *block)
{
	u32 w[64], s[8];

	for (int i = 0; i < 16; i++)
		w[i] = (u32)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 |
		       block[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		u32 a = w[i - 15], b = w[i - 2];

		w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
		       (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
	}
	for (int i = 0; i < 8; i++)
		s[i] = state[i];
	for (int i = 0; i < 64; i++) {
		u32 e = s[4], a = s[0];
		u32 t1 = s[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
			 ((e & s[5]) ^ (~e & s[6])) + constants[i] + w[i];
		u32 t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
			 ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));

		for (int j = 7; j > 0; j--)
			s[j] = s[j - 1];
		s[4] += t1;
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		state[i] += s[i];
}

/* Of `blocks` blocks whose bytes are those of a sequence. */
static void hash(u32 blocks)
{
	u32 state[8], number = 1;
	u8 block[64], digest[32];

	for (int i = 0; i < 8; i++)
		state[i] = initial[i];
	for (u32 n = 0; n < blocks; n++) {
		for (int i = 0; i < 64; i++) {
			number = number * 1664525 + 1013904223;
			block[i] = number >> 24;
		}
		hash_block(state, block);
	}
	for (int i = 0; i < 64; i++)
		block[i] = 0;
	block[0] = 0x80;
	for (int i = 0; i < 8; i++)
		block[63 - i] = (u64)blocks * 512 >> (8 * i);
	hash_block(state, block);
	for (int i = 0; i < 32; i++)
		digest[i] = state[i / 4] >> (24 - 8 * (i % 4));
	say("sha256", digest, 32);
}

static int __attribute__((noinline)) fibonacci(int n)
{
	return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static u64 __attribute__((noinline)) add(u64 a, u64 b) { return a + (b << 7); }
static u64 __attribute__((noinline)) sub(u64 a, u64 b) { return a - b * 3; }
static u64 __attribute__((noinline)) mix(u64 a, u64 b) { return (a ^ b) * 0x5851f42d4c957f2dull; }

static u64 call_by_pointers(void)
{
	u64 (*const functions[])(u64, u64) = { add, sub, mix };
	u64 value = 1;

	for (u32 i = 0; i < 300000; i++)
		value = functions[i % 3](value, i);
	return value;
}

/* GS with a base, and offsets that wrap around behind 4 GiB. */
static u32 thread_local(void)
{
	static u32 area[3] = { 0x11111111, 0x22222222, 0x33333333 };
	struct {
		u32 entry, base, limit, flags;
	} descriptor = { -1, (u32)&area[1], 0xfffff, 0x51 };
	u32 before, here, behind;

	if (system_call(SET_THREAD_AREA, (int)&descriptor, 0, 0))
		return 0;
	__asm__ volatile("mov %0, %%gs" : : "r"(descriptor.entry * 8 + 3));
	for (int i = 0; i < 1000; i++) {
		__asm__ volatile("addl $3, %%gs:4\n\t"
				 "mov %%gs:0xfffffffc, %0\n\t"
				 "mov %%gs:0, %1\n\t"
				 "mov %%gs:(%3), %2"
				 : "=&r"(before), "=&r"(here), "=&r"(behind)
				 : "r"(4)
				 : "memory");
	}
	return before ^ here ^ behind;
}

/* What only 32-bit code has. */
static u32 old_instructions(void)
{
	u32 sum = 0;

	for (u32 i = 0; i < 1000; i++) {
		u32 value = i;

		__asm__ volatile("add $0x27, %%al\n\t"
				 "daa\n\t"
				 "aam\n\t"
				 "pusha\n\t"
				 "xor %%eax, %%eax\n\t"
				 "incl 28(%%esp)\n\t"
				 "popa\n\t"
				 "push %%ds\n\t"
				 "pop %%es\n\t"
				 "inc %%eax\n\t"
				 "dec %%ax"
				 : "+a"(value)
				 :
				 : "cc", "memory");
		sum = sum * 31 + value;
	}
	return sum;
}

void __attribute__((force_align_arg_pointer, noreturn)) _start(void)
{
	hash(BLOCKS);
	say_number("fibonacci", fibonacci(FIBONACCI));
	say_number("pointers", call_by_pointers());
	say_number("thread", thread_local());
	say_number("old", old_instructions());
	for (;;)
		system_call(EXIT, 0, 0, 0);
}
