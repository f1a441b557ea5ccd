/* See writer.h. After an error of write or fdatasync it writes no more: what the page cache then holds says nothing. */
#define _GNU_SOURCE
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct writer_status state; /* under lock; gap_us and gap_at without the running gap */
static bool stopping;              /* under lock */
static pthread_t thread;
static bool running;
static int records_fd = -1;
static int direct_fd = -1;

uint64_t mono_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int write_record(uint64_t number)
{
    struct record record;
    record_fill(&record, number, mono_us());
    ssize_t written = pwrite(records_fd, &record, sizeof record, record_offset(number));
    if (written != (ssize_t)sizeof record)
        return written < 0 ? errno : EIO;
    return fdatasync(records_fd) < 0 ? errno : 0;
}

static void *writer_main(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        bool stop = stopping;
        uint64_t number = state.acked + 1, rate = state.rate;
        pthread_mutex_unlock(&lock);
        if (stop)
            return NULL;

        uint64_t begun = mono_us();
        int error = write_record(number);
        uint64_t now = mono_us();

        pthread_mutex_lock(&lock);
        state.error = error;
        if (!error) {
            uint64_t gap = now - state.acked_at_us;
            if (gap > state.gap_us) {
                state.gap_us = gap;
                state.gap_at = number;
            }
            state.acked = number;
            state.acked_at_us = now;
        }
        pthread_mutex_unlock(&lock);
        if (error)
            return NULL;
        if (rate && now - begun < 1000000 / rate)
            usleep((useconds_t)(1000000 / rate - (now - begun)));
    }
}

int writer_start(const char *path, uint64_t rate)
{
    records_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (records_fd < 0)
        return -errno;
    /* Space taken now can't run out later. */
    if (fallocate(records_fd, 0, 0, (off_t)RING_RECORDS * RECORD_SIZE) < 0 || fsync(records_fd) < 0)
        return -errno;
    direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (direct_fd < 0)
        return -errno;
    state.rate = rate;
    int error = ring_scan(direct_fd, &state.acked);
    if (error)
        return error;
    state.acked_at_us = mono_us();
    error = pthread_create(&thread, NULL, writer_main, NULL);
    running = error == 0;
    return -error;
}

void writer_stop(void)
{
    if (!running)
        return;
    pthread_mutex_lock(&lock);
    stopping = true;
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    running = false;
}

struct writer_status writer_status(void)
{
    pthread_mutex_lock(&lock);
    struct writer_status copy = state;
    uint64_t since = mono_us() - state.acked_at_us;
    if (running && since > copy.gap_us) {
        copy.gap_us = since;
        copy.gap_at = 0;
    }
    pthread_mutex_unlock(&lock);
    return copy;
}

void writer_reset(void)
{
    pthread_mutex_lock(&lock);
    state.gap_us = 0;
    state.gap_at = 0;
    pthread_mutex_unlock(&lock);
}

void writer_set_rate(uint64_t rate)
{
    pthread_mutex_lock(&lock);
    state.rate = rate;
    pthread_mutex_unlock(&lock);
}

int writer_verify(struct ring_report *report)
{
    return ring_check(direct_fd, writer_status().acked, running, report);
}
