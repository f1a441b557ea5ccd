/* The records file: a ring of 512-byte, numbered, checksummed records.
 *
 * Record n (counted from 1) lies in slot (n - 1) mod RING_RECORDS. A record is written only after the one before it was
 * acknowledged by fdatasync, so at any moment at most one slot, the one of the next record, may be torn.
 * Shared by the guest's recorder and by the check on the host; knows nothing of threads or channels. */
#ifndef GODWIT_RECORD_H
#define GODWIT_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#define RECORD_SIZE 512
#define RING_RECORDS ((uint64_t)(64 << 20) / RECORD_SIZE)

/* Little-endian, as the guest is x86. */
struct record {
    uint64_t magic;
    uint64_t number;
    uint64_t mono_us; /* guest's monotonic clock when the record was made */
    uint64_t sum;     /* over all other words */
    uint64_t padding[RECORD_SIZE / 8 - 4]; /* a function of number, so that a mix of two records shows */
};
_Static_assert(sizeof(struct record) == RECORD_SIZE, "a record is one sector");

struct ring_report {
    uint64_t first, last; /* range of numbers that was checked; last = 0: none */
    uint64_t checked;
    uint64_t bad;     /* slots whose checksum or magic is wrong */
    uint64_t missing; /* slots that hold a good record with a wrong number, or nothing */
    uint64_t first_wrong; /* number of the first record that was bad or missing, 0 if none */
};

void record_fill(struct record *record, uint64_t number, uint64_t mono_us);

/* Byte offset of a record in the file. */
int64_t record_offset(uint64_t number);

/* Finds the highest number of any good record (0: none). Returns 0, or -errno. */
int ring_scan(int fd, uint64_t *last);

/* Checks that all records up to `last` that the ring still holds are there and good. With `live` the ring's owner goes on
 * writing meanwhile: newer records are accepted in the place of those that they overwrite. Returns 0 or -errno; what is
 * wrong with the records is in the report. The descriptor should be O_DIRECT where a page cache must not answer. */
int ring_check(int fd, uint64_t last, bool live, struct ring_report *report);

static inline bool ring_report_ok(const struct ring_report *report)
{
    return report->bad == 0 && report->missing == 0;
}

#endif
