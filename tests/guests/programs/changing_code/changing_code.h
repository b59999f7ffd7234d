/* Programs that change code and look whether what they run is the new one. */
#ifndef CHANGING_CODE_H
#define CHANGING_CODE_H

#include <stddef.h>
#include <stdint.h>

enum { PAGE = 4096 };

/* How often code of one page is changed. An engine may take a page that changes all the time for
 * one that is not worth its while, and do without whatever goes wrong: so there are many pages. */
enum { VERSIONS = 40 };

/* Each checks something and returns how many times it ran code that had been changed. It ends the
 * program if that was not the code that it should have been. */
typedef uint64_t scenario(void);

/* stores.c: code that changes itself */
scenario itself, data_beside_code, one_page;
/* writers.c: code that is changed by way of something else */
scenario plain, protected, alias, by_write, by_memory_file, by_vm_write, mapped_anew, moved, forked;
scenario from_disk, packet_filters;
/* threads.c: code that another thread runs */
scenario handshake, barrier, atomically;

/* Ends the program: a system call failed. */
void give_up(const char *what) __attribute__((noreturn));
/* Ends the program unless code did as it should. */
void expect(uint64_t got, uint64_t wanted, const char *what, uint64_t detail);
/* Fresh pages, executable and writable. They are never given back: the next one to get them would
 * get pages that have changed before. */
uint8_t *fresh(size_t pages);
/* Numbers that look random. */
uint64_t any(void);

/* Where HOT has the number that it adds. */
enum { HOT_SIZE = 256, HOT_NUMBER = 200 };
/* How often it does: enough to be worth translating. */
enum { HOT_TIMES = 50 };

/* Writes, for its first time, a function that adds a number HOT_TIMES times, in several blocks. */
void write_hot(uint8_t *at, uint32_t number);
/* Runs it, again and again, and expects that it added this number. */
void run_hot(const uint8_t *at, uint32_t number, const char *what, uint64_t detail);

#endif
