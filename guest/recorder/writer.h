/* The record writer: a thread that appends a record, waits for fdatasync, and only then calls it acknowledged. */
#ifndef GODWIT_WRITER_H
#define GODWIT_WRITER_H

#include "record.h"

struct writer_status {
    uint64_t acked;   /* number of the last acknowledged record */
    uint64_t acked_at_us; /* guest's monotonic clock at that moment */
    uint64_t gap_us;  /* longest time between two acknowledgements since the last reset, the running one included */
    uint64_t gap_at;  /* number of the record that ended it; 0: it still goes on */
    uint64_t rate;    /* records per second asked for; 0: as fast as they go */
    int error;        /* errno that ended the writer, or 0 */
};

uint64_t mono_us(void);

/* Opens (or makes) the records file, finds the last record and starts after it. Returns 0 or -errno. */
int writer_start(const char *path, uint64_t rate);
/* Returns when the record in flight is acknowledged. */
void writer_stop(void);
struct writer_status writer_status(void);
void writer_reset(void);
void writer_set_rate(uint64_t rate);
/* Rereads all records from the disk (not from the page cache). */
int writer_verify(struct ring_report *report);

#endif
