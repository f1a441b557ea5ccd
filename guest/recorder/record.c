/* Making, finding and checking records; see record.h. */
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x3144524f43455247ull /* "GRECORD1" */
#define CHUNK (1u << 20)
#define PAGE 4096u

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
    return hash ^ (hash >> 29);
}

static uint64_t sum_of(const struct record *record)
{
    uint64_t hash = mix(mix(mix(1, record->magic), record->number), record->mono_us);
    for (size_t i = 0; i < sizeof record->padding / 8; i++)
        hash = mix(hash, record->padding[i]);
    return hash;
}

void record_fill(struct record *record, uint64_t number, uint64_t mono_us)
{
    record->magic = MAGIC;
    record->number = number;
    record->mono_us = mono_us;
    for (size_t i = 0; i < sizeof record->padding / 8; i++)
        record->padding[i] = mix(number, i);
    record->sum = sum_of(record);
}

static bool record_good(const struct record *record)
{
    return record->magic == MAGIC && record->number != 0 && record->sum == sum_of(record);
}

int64_t record_offset(uint64_t number)
{
    return (int64_t)((number - 1) % RING_RECORDS * RECORD_SIZE);
}

/* Reads up to `size` bytes; the rest, past the end of the file, becomes zeroes. */
static int read_padded(int fd, void *buffer, size_t size, int64_t offset)
{
    size_t done = 0;
    while (done < size) {
        ssize_t got = pread(fd, (char *)buffer + done, size - done, offset + (int64_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    memset((char *)buffer + done, 0, size - done);
    return 0;
}

/* Calls `visit` for each slot in order until it returns non-zero. */
static int each_slot(int fd, int (*visit)(void *context, uint64_t slot, const struct record *record), void *context)
{
    struct record *chunk = aligned_alloc(PAGE, CHUNK);
    if (!chunk)
        return -ENOMEM;
    int result = 0;
    for (uint64_t slot = 0; slot < RING_RECORDS && result == 0; slot += CHUNK / RECORD_SIZE) {
        int64_t offset = (int64_t)(slot * RECORD_SIZE);
        /* A ring in its first round is mostly a hole; do not read that. */
        int64_t data = lseek(fd, offset, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            data = (int64_t)RING_RECORDS * RECORD_SIZE;
        if (data >= offset + (int64_t)CHUNK)
            memset(chunk, 0, CHUNK);
        else
            result = read_padded(fd, chunk, CHUNK, offset);
        for (uint64_t i = 0; i < CHUNK / RECORD_SIZE && result == 0; i++)
            result = visit(context, slot + i, &chunk[i]);
    }
    free(chunk);
    return result;
}

static int visit_scan(void *context, uint64_t slot, const struct record *record)
{
    uint64_t *last = context;
    if (record_good(record) && (record->number - 1) % RING_RECORDS == slot && record->number > *last)
        *last = record->number;
    return 0;
}

int ring_scan(int fd, uint64_t *last)
{
    *last = 0;
    return each_slot(fd, visit_scan, last);
}

struct check {
    int fd;
    bool live;
    struct ring_report *report;
};

enum finding { GOOD, BAD, MISSING };

static enum finding judge(const struct check *check, uint64_t number, const struct record *record)
{
    if (!record_good(record))
        return record->magic == 0 && record->number == 0 ? MISSING : BAD;
    if (record->number == number)
        return GOOD;
    uint64_t last = check->report->last;
    bool newer = record->number > last && (record->number - number) % RING_RECORDS == 0;
    return check->live && newer ? GOOD : MISSING;
}

static int visit_check(void *context, uint64_t slot, const struct record *seen)
{
    struct check *check = context;
    struct ring_report *report = check->report;
    /* The highest number up to `last` that belongs into this slot. */
    uint64_t round = report->last / RING_RECORDS * RING_RECORDS;
    uint64_t number = round + slot + 1;
    if (number > report->last) {
        if (round == 0)
            return 0;
        number -= RING_RECORDS;
    }
    /* This slot is the next record's, which may be on its way. */
    if (number + RING_RECORDS == report->last + 1)
        return 0;
    report->checked++;
    if (report->first == 0 || number < report->first)
        report->first = number;

    enum finding finding = judge(check, number, seen);
    if (finding != GOOD && check->live) {
        /* Read while it was being overwritten? Then it is whole a moment later. */
        static _Alignas(PAGE) struct record page[PAGE / RECORD_SIZE];
        nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
        int64_t offset = (int64_t)(slot * RECORD_SIZE);
        int error = read_padded(check->fd, page, PAGE, offset / PAGE * PAGE);
        if (error)
            return error;
        finding = judge(check, number, &page[offset % PAGE / RECORD_SIZE]);
    }
    if (finding == BAD)
        report->bad++;
    if (finding == MISSING)
        report->missing++;
    if (finding != GOOD && (report->first_wrong == 0 || number < report->first_wrong))
        report->first_wrong = number;
    return 0;
}

int ring_check(int fd, uint64_t last, bool live, struct ring_report *report)
{
    *report = (struct ring_report){.last = last};
    struct check check = {.fd = fd, .live = live, .report = report};
    return each_slot(fd, visit_check, &check);
}
