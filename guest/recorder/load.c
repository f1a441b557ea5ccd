/* See load.h. */
#define _GNU_SOURCE
#include "load.h"
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define BLOCK (64u << 10)
#define SECTOR 512u
#define MIB (1u << 20)
#define FLUSH_EVERY 256 /* blocks */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over state, stopping */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct load_status state;
static bool stopping, running;
static pthread_t thread;
static int fd = -1;

/* Held while a block is written or checked; over written_count. */
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool check_waits; /* a mutex is not fair: the writer would take it again and again */
static uint64_t blocks;
static uint64_t *written_count; /* per block: count of the write that it must hold; 0: not written yet */

static _Alignas(4096) uint64_t base[BLOCK / 8]; /* does not compress */

struct stamp {
    uint64_t block, count, sector;
};

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void fill(char *buffer, uint64_t block, uint64_t count)
{
    memcpy(buffer, base, BLOCK);
    for (uint64_t sector = 0; sector < BLOCK / SECTOR; sector++)
        memcpy(buffer + sector * SECTOR, &(struct stamp){block, count, sector}, sizeof(struct stamp));
}

static int write_block(char *buffer, uint64_t block, uint64_t count)
{
    while (atomic_load(&check_waits))
        usleep(100);
    pthread_mutex_lock(&blocks_lock);
    fill(buffer, block, count);
    ssize_t written = pwrite(fd, buffer, BLOCK, (off_t)(block * BLOCK));
    int error = written == BLOCK ? 0 : written < 0 ? errno : EIO;
    if (!error)
        written_count[block] = count;
    pthread_mutex_unlock(&blocks_lock);
    if (!error && count % FLUSH_EVERY == 0 && fdatasync(fd) < 0)
        error = errno;
    return error;
}

static void *load_main(void *unused)
{
    (void)unused;
    static _Alignas(4096) char buffer[BLOCK];
    uint64_t seed = mono_us() * 2 + 1, count = 0, due = mono_us();
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!stopping && (state.mib_per_s == 0 || state.error)) {
            pthread_cond_wait(&changed, &lock);
            due = mono_us();
        }
        bool stop = stopping;
        uint64_t rate = state.mib_per_s;
        pthread_mutex_unlock(&lock);
        if (stop)
            return NULL;

        int error = write_block(buffer, next_random(&seed) % blocks, ++count);

        pthread_mutex_lock(&lock);
        state.error = error;
        if (!error)
            state.written += BLOCK;
        pthread_mutex_unlock(&lock);
        if (rate == LOAD_MAX)
            continue;
        due += BLOCK * 1000000ull / (rate * MIB);
        uint64_t now = mono_us();
        if (due > now)
            usleep((useconds_t)(due - now));
        else if (now - due > 1000000)
            due = now; /* after a stall go on at the rate, don't catch up */
    }
}

static int load_start(const char *path, uint64_t size_mib)
{
    fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    struct statvfs fs;
    if (size_mib == 0) {
        off_t old = lseek(fd, 0, SEEK_END);
        if (fstatvfs(fd, &fs) < 0)
            return -errno;
        size_mib = fs.f_bavail * fs.f_frsize / 4 / MIB;
        if (size_mib > 256)
            size_mib = 256;
        if (old >= (off_t)MIB)
            size_mib = (uint64_t)old / MIB; /* a former boot's file is used again */
    }
    if (size_mib == 0)
        return -ENOSPC;
    if (fallocate(fd, 0, 0, (off_t)(size_mib * MIB)) < 0)
        return -errno;
    blocks = size_mib * MIB / BLOCK;
    written_count = calloc(blocks, sizeof *written_count);
    if (!written_count)
        return -ENOMEM;
    uint64_t seed = mono_us() * 2 + 1;
    for (size_t i = 0; i < BLOCK / 8; i++)
        base[i] = next_random(&seed);
    state.file_size = size_mib * MIB;
    int error = pthread_create(&thread, NULL, load_main, NULL);
    running = error == 0;
    return -error;
}

int load_set(const char *path, uint64_t mib_per_s, uint64_t size_mib)
{
    int error = 0;
    if (!running && mib_per_s != 0)
        error = load_start(path, size_mib);
    if (error) {
        if (fd >= 0)
            close(fd);
        fd = -1;
        free(written_count);
        written_count = NULL;
        state.file_size = 0;
        return error;
    }
    pthread_mutex_lock(&lock);
    state.mib_per_s = mib_per_s;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    return 0;
}

void load_stop(void)
{
    if (!running)
        return;
    pthread_mutex_lock(&lock);
    stopping = true;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    running = false;
    fsync(fd);
}

struct load_status load_status(void)
{
    pthread_mutex_lock(&lock);
    struct load_status copy = state;
    pthread_mutex_unlock(&lock);
    return copy;
}

int load_verify(struct load_report *report)
{
    static _Alignas(4096) char seen[BLOCK], wanted[BLOCK];
    *report = (struct load_report){0};
    for (uint64_t block = 0; running && block < blocks; block++) {
        atomic_store(&check_waits, true);
        pthread_mutex_lock(&blocks_lock);
        atomic_store(&check_waits, false);
        uint64_t count = written_count[block];
        ssize_t got = count ? pread(fd, seen, BLOCK, (off_t)(block * BLOCK)) : 0;
        int error = got < 0 ? errno : 0;
        pthread_mutex_unlock(&blocks_lock);
        if (error)
            return -error;
        if (count == 0)
            continue;
        report->checked++;
        fill(wanted, block, count);
        if (got == BLOCK && memcmp(seen, wanted, BLOCK) == 0)
            continue;
        if (report->bad++ == 0)
            report->first_bad = block;
    }
    return 0;
}
