/* A background load: one thread that overwrites random 64 KiB blocks of a file, past the page cache, at a given rate.
 * Every block carries its own number and the count of the write, so a lost, late or misplaced write is found. */
#ifndef GODWIT_LOAD_H
#define GODWIT_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#define LOAD_MAX UINT64_MAX

struct load_status {
    uint64_t mib_per_s; /* rate asked for; 0: off, LOAD_MAX: as fast as it goes */
    uint64_t written;   /* bytes since the start of this program */
    uint64_t file_size; /* bytes; 0: never started */
    int error;          /* errno that ended the load, or 0 */
};

struct load_report {
    uint64_t checked, bad; /* blocks of 64 KiB */
    uint64_t first_bad;    /* block number, meaningful when bad > 0 */
};

/* Sets the rate; makes the file at first use. `size_mib` 0: a quarter of the free space, at most 256 MiB. It counts
 * only at first use. Returns 0 or -errno. */
int load_set(const char *path, uint64_t mib_per_s, uint64_t size_mib);
/* Ends the thread and flushes what it wrote. */
void load_stop(void);
struct load_status load_status(void);
/* Rereads every block written since the start of this program. Returns 0 or -errno. */
int load_verify(struct load_report *report);

#endif
