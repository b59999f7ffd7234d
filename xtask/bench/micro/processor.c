/* Workloads that need nothing but the processor. */
#include "micro.h"

#include <stdlib.h>
#include <string.h>

/* A chain of integer instructions, each of which waits for the one before. */
uint64_t integers(uint64_t count)
{
    uint64_t x = 88172645463325252u, sum = 0;
    begin();
    for (uint64_t i = 0; i < count; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        sum += (x >> 33) ^ i;
    }
    return sum;
}

static __attribute__((noinline, noclone)) uint64_t fibonacci(uint64_t n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

/* Calls and returns. */
uint64_t recursion(uint64_t count)
{
    uint64_t sum = 0;
    begin();
    for (uint64_t i = 0; i < count; i++)
        sum = sum * 31 + fibonacci(20 + i % 4);
    return sum;
}

/* Double precision arithmetic, one number at a time: a polynomial. */
uint64_t doubles(uint64_t count)
{
    double sum = 0;
    begin();
    for (uint64_t i = 0; i < count; i++) {
        double x = (double)(int64_t)i * 1e-8;
        sum += ((x * 0.3 - 0.7) * x + 1.1) * x - 0.9;
    }
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return bits;
}

enum { N = 128 };

/*
 * The product of two matrices of doubles, as textbooks have it. Of fractions: emulators take other
 * ways for numbers that need no rounding.
 */
uint64_t matrix(uint64_t count)
{
    double(*a)[N] = malloc(sizeof(double[N][N]));
    double(*b)[N] = malloc(sizeof(double[N][N]));
    double(*c)[N] = calloc(N, sizeof(double[N]));
    if (!a || !b || !c)
        give_up("malloc");
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i][j] = ((i * 7 + j * 3) % 11 - 5) * 0.1;
            b[i][j] = ((i * 5 + j * 2) % 13 - 6) * 0.3;
        }
    begin();
    for (uint64_t round = 0; round < count; round++) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = (double)round * 1e-3;
                for (int k = 0; k < N; k++)
                    sum += a[i][k] * b[k][j];
                c[i][j] += sum;
            }
    }
    end();
    uint64_t sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            uint64_t bits;
            memcpy(&bits, &c[i][j], sizeof bits);
            sum = sum * 31 + bits;
        }
    return sum;
}
