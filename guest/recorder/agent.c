/* The guest's side of the line protocol: reads commands from the agent port (ttyS1) and the console (ttyS0), answers each
 * with one line that begins with `ok` or `err`, prints `ACK n us` on the console while records are acknowledged, and takes
 * the ACPI power button for a `poweroff`. */
#define _GNU_SOURCE
#include "agent.h"
#include "load.h"
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define RECORDS_PATH "/data/records"
#define LOAD_PATH "/data/load"
#define ACK_EVERY_MS 100
#define MOST_POWER_KEYS 4

static const char HELP[] = "ok commands: ping, status, reset, rate N|max, load N|max|off [SIZE_MIB], verify, trim, poweroff, reboot";

struct port {
    int fd; /* -1: not there */
    size_t used;
    char line[512];
};

enum { AGENT_PORT, CONSOLE_PORT, PORTS };
static struct port ports[PORTS];
static int after_command = -1; /* exit code once the command is answered; -1: go on */

static void say(int fd, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (fd < 0 || length < 0)
        return;
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    for (int done = 0; done < length;) {
        ssize_t wrote = write(fd, line + done, (size_t)(length - done));
        if (wrote < 0 && errno != EINTR)
            return;
        done += wrote > 0 ? (int)wrote : 0;
    }
}

/* Parses a whole decimal number. */
static bool number(const char *word, uint64_t *value)
{
    char *end;
    if (!word || *word < '0' || *word > '9')
        return false;
    errno = 0;
    *value = strtoull(word, &end, 10);
    return errno == 0 && *end == 0;
}

static void status(char *reply, size_t size)
{
    struct writer_status writer = writer_status();
    struct load_status load = load_status();
    char load_rate[24] = "off";
    if (load.mib_per_s == LOAD_MAX)
        strcpy(load_rate, "max");
    else if (load.mib_per_s)
        snprintf(load_rate, sizeof load_rate, "%llu", (unsigned long long)load.mib_per_s);
    snprintf(reply, size, "ok acked=%llu gap_us=%llu gap_at=%llu now_us=%llu rate=%llu error=%d load=%s load_written=%llu load_size=%llu load_error=%d",
             (unsigned long long)writer.acked, (unsigned long long)writer.gap_us, (unsigned long long)writer.gap_at,
             (unsigned long long)mono_us(), (unsigned long long)writer.rate, writer.error, load_rate,
             (unsigned long long)load.written, (unsigned long long)load.file_size, load.error);
}

static void verify(char *reply, size_t size)
{
    struct ring_report records;
    struct load_report load;
    int error = writer_verify(&records);
    if (!error)
        error = load_verify(&load);
    if (error) {
        snprintf(reply, size, "err verify: read: %s", strerror(-error));
        return;
    }
    bool good = ring_report_ok(&records) && load.bad == 0;
    snprintf(reply, size, "%s checked=%llu first=%llu last=%llu bad=%llu missing=%llu first_wrong=%llu load_checked=%llu load_bad=%llu load_first_bad=%llu",
             good ? "ok" : "err verify:", (unsigned long long)records.checked, (unsigned long long)records.first,
             (unsigned long long)records.last, (unsigned long long)records.bad, (unsigned long long)records.missing,
             (unsigned long long)records.first_wrong, (unsigned long long)load.checked, (unsigned long long)load.bad,
             (unsigned long long)load.first_bad);
}

static void set_load(char *reply, size_t size, const char *rate_word, const char *size_word)
{
    uint64_t rate = 0, size_mib = 0;
    if (rate_word && strcmp(rate_word, "max") == 0)
        rate = LOAD_MAX;
    else if (rate_word && strcmp(rate_word, "off") == 0)
        rate = 0;
    else if (!number(rate_word, &rate) || rate > 1000000) {
        snprintf(reply, size, "err load: want a rate in MiB/s, max or off");
        return;
    }
    if (size_word && !number(size_word, &size_mib)) {
        snprintf(reply, size, "err load: want the size in MiB");
        return;
    }
    int error = load_set(LOAD_PATH, rate, size_mib);
    snprintf(reply, size, error ? "err load: %s" : "ok", strerror(-error));
}

static void trim(char *reply, size_t size)
{
    struct fstrim_range range = {.len = UINT64_MAX};
    int fd = open("/data", O_RDONLY | O_DIRECTORY);
    if (fd < 0 || ioctl(fd, FITRIM, &range) < 0)
        snprintf(reply, size, "err trim: %s", strerror(errno));
    else
        snprintf(reply, size, "ok trimmed=%llu", (unsigned long long)range.len);
    if (fd >= 0)
        close(fd);
}

static void stop(char *reply, size_t size, int exit_code)
{
    load_stop();
    writer_stop();
    sync();
    struct writer_status writer = writer_status();
    snprintf(reply, size, "ok acked=%llu gap_us=%llu gap_at=%llu error=%d", (unsigned long long)writer.acked,
             (unsigned long long)writer.gap_us, (unsigned long long)writer.gap_at, writer.error);
    after_command = exit_code;
}

static void command(char *line, char *reply, size_t size)
{
    char *rest = line;
    const char *verb = strsep(&rest, " "), *first = strsep(&rest, " "), *second = strsep(&rest, " ");
    uint64_t value = 0;
    snprintf(reply, size, "ok");
    if (strcmp(verb, "ping") == 0)
        snprintf(reply, size, "ok pong");
    else if (strcmp(verb, "status") == 0)
        status(reply, size);
    else if (strcmp(verb, "reset") == 0)
        writer_reset();
    else if (strcmp(verb, "rate") == 0 && first && (strcmp(first, "max") == 0 || number(first, &value)) && value <= 1000000)
        writer_set_rate(value);
    else if (strcmp(verb, "rate") == 0)
        snprintf(reply, size, "err rate: want records per second, or max");
    else if (strcmp(verb, "load") == 0)
        set_load(reply, size, first, second);
    else if (strcmp(verb, "verify") == 0)
        verify(reply, size);
    else if (strcmp(verb, "trim") == 0)
        trim(reply, size);
    else if (strcmp(verb, "poweroff") == 0)
        stop(reply, size, AGENT_POWEROFF);
    else if (strcmp(verb, "reboot") == 0)
        stop(reply, size, AGENT_REBOOT);
    else if (strcmp(verb, "help") == 0)
        snprintf(reply, size, "%s", HELP);
    else
        snprintf(reply, size, "err unknown command '%.40s', try help", verb);
}

static void answer(struct port *port)
{
    char reply[480], *line = port->line;
    if (*line == 0)
        return;
    /* `#TAG command` is answered with `#TAG reply`, so that a client can tell its answer from a late one. */
    const char *tag = NULL;
    if (*line == '#')
        tag = strsep(&line, " ");
    command(line ? line : (char[]){""}, reply, sizeof reply);
    say(port->fd, "%s%s%s", tag ? tag : "", tag ? " " : "", reply);
}

static void receive(struct port *port)
{
    char bytes[128];
    ssize_t got = read(port->fd, bytes, sizeof bytes);
    for (ssize_t i = 0; i < got && after_command < 0; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r') {
            port->line[port->used] = 0;
            port->used = 0;
            answer(port);
        } else if (port->used < sizeof port->line - 1) {
            port->line[port->used++] = bytes[i];
        }
    }
}

static int open_port(const char *path)
{
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios mode;
    if (fd < 0 || tcgetattr(fd, &mode) < 0) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    cfmakeraw(&mode);
    mode.c_cflag |= CLOCAL | CREAD;
    cfsetspeed(&mode, B115200);
    tcsetattr(fd, TCSANOW, &mode);
    return fd;
}

/* Opens the input devices that have a power key (keyboards have one too); returns how many. */
static int open_power_keys(int fds[], int most)
{
    int count = 0;
    for (int i = 0; i < 16 && count < most; i++) {
        char path[32];
        unsigned char keys[KEY_MAX / 8 + 1] = {0};
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0)
            continue;
        if (ioctl(fd, EVIOCGBIT(EV_KEY, sizeof keys), keys) >= 0 && keys[KEY_POWER / 8] & 1 << KEY_POWER % 8)
            fds[count++] = fd;
        else
            close(fd);
    }
    return count;
}

static bool power_pressed(int fd)
{
    struct input_event event;
    while (read(fd, &event, sizeof event) == sizeof event)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
            return true;
    return false;
}

static void acknowledge(int console, uint64_t *printed, int *error_printed)
{
    struct writer_status writer = writer_status();
    if (writer.acked != *printed)
        say(console, "ACK %llu %llu\r", (unsigned long long)writer.acked, (unsigned long long)writer.acked_at_us);
    *printed = writer.acked;
    int error = writer.error ? writer.error : load_status().error;
    if (error && error != *error_printed)
        say(console, "ERROR %s\r", strerror(error));
    *error_printed = error;
}

static void power_off_by_key(int console)
{
    char reply[480];
    stop(reply, sizeof reply, AGENT_POWEROFF);
    say(console, "power button: %s\r", reply);
}

int agent_run(uint64_t rate)
{
    ports[AGENT_PORT].fd = open_port("/dev/ttyS1");
    ports[CONSOLE_PORT].fd = open_port("/dev/ttyS0");
    int console = ports[CONSOLE_PORT].fd, error_printed = 0, power_keys[MOST_POWER_KEYS];
    int error = writer_start(RECORDS_PATH, rate);
    if (error) {
        say(console, "ERROR start of the record writer: %s\r", strerror(-error));
        return AGENT_FAILED;
    }
    struct pollfd polled[PORTS + MOST_POWER_KEYS];
    int watched = PORTS + open_power_keys(power_keys, MOST_POWER_KEYS);
    for (int i = 0; i < watched; i++)
        polled[i] = (struct pollfd){i < PORTS ? ports[i].fd : power_keys[i - PORTS], POLLIN, 0};

    uint64_t printed = 0, last_print = 0;
    say(console, "READY %llu\r", (unsigned long long)writer_status().acked);
    while (after_command < 0) {
        if (poll(polled, (nfds_t)watched, ACK_EVERY_MS) < 0) {
            if (errno == EINTR)
                continue;
            return AGENT_FAILED;
        }
        for (int i = 0; i < watched && after_command < 0; i++) {
            if (!(polled[i].revents & POLLIN))
                continue;
            if (i < PORTS)
                receive(&ports[i]);
            else if (power_pressed(polled[i].fd))
                power_off_by_key(console);
        }
        if (mono_us() - last_print >= ACK_EVERY_MS * 1000) {
            acknowledge(console, &printed, &error_printed);
            last_print = mono_us();
        }
    }
    tcdrain(ports[AGENT_PORT].fd);
    tcdrain(console);
    return after_command;
}
