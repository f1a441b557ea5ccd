/* Asks the agent in a guest over the unix socket that QEMU connected to the guest's second serial port.
 * Says `ping` until the guest answers, so it may be called while the guest boots, and sends the command once. */
#define _GNU_SOURCE
#include "ask.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PING_EVERY_MS 300

struct client {
    int fd;
    size_t used;
    char line[1024];
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool connect_to(struct client *client, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return false;
    }
    strcpy(address.sun_path, path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        return false;
    if (connect(client->fd, (struct sockaddr *)&address, sizeof address) == 0)
        return true;
    int error = errno;
    close(client->fd);
    errno = error;
    return false;
}

static bool send_line(struct client *client, const char *tag, const char *command)
{
    char line[1024];
    int length = snprintf(line, sizeof line, "\n%s %s\n", tag, command);
    return length < (int)sizeof line && send(client->fd, line, (size_t)length, MSG_NOSIGNAL) == length;
}

/* Before the agent has its port the guest's terminal sends back what it is told. */
static bool is_answer(const char *words)
{
    return strncmp(words, "ok", 2) == 0 || strncmp(words, "err", 3) == 0;
}

/* Waits for the line that begins with `tag`; gives what follows it, or NULL at the deadline or the end of the stream. */
static const char *wait_for(struct client *client, const char *tag, int64_t deadline)
{
    static char answer[sizeof client->line];
    for (;;) {
        char *end;
        while ((end = memchr(client->line, '\n', client->used))) {
            size_t length = (size_t)(end - client->line), tag_length = strlen(tag);
            memcpy(answer, client->line, length);
            answer[length] = 0;
            client->used -= length + 1;
            memmove(client->line, end + 1, client->used);
            answer[strcspn(answer, "\r")] = 0;
            const char *rest = answer + tag_length + 1;
            if (strncmp(answer, tag, tag_length) == 0 && answer[tag_length] == ' ' && is_answer(rest))
                return rest;
        }
        if (client->used == sizeof client->line)
            client->used = 0;
        int64_t left = deadline - now_ms();
        struct pollfd polled = {client->fd, POLLIN, 0};
        if (left <= 0 || poll(&polled, 1, (int)left) <= 0)
            return NULL;
        ssize_t got = read(client->fd, client->line + client->used, sizeof client->line - client->used);
        if (got <= 0)
            return NULL;
        client->used += (size_t)got;
    }
}

int ask(const char *path, int timeout_s, const char *command)
{
    struct client client = {.fd = -1};
    int64_t deadline = now_ms() + timeout_s * 1000ll;
    while (!connect_to(&client, path)) {
        if (now_ms() >= deadline || (errno != ENOENT && errno != ECONNREFUSED && errno != EAGAIN)) {
            fprintf(stderr, "recorder: %s: %s\n", path, strerror(errno));
            return 3;
        }
        usleep(50 * 1000);
    }
    char ping_tag[32], tag[32];
    snprintf(ping_tag, sizeof ping_tag, "#p%d-%lld", getpid(), (long long)now_ms());
    snprintf(tag, sizeof tag, "#c%d-%lld", getpid(), (long long)now_ms());
    const char *answer = NULL;
    while (!answer && now_ms() < deadline && send_line(&client, ping_tag, "ping")) {
        int64_t next = now_ms() + PING_EVERY_MS;
        answer = wait_for(&client, ping_tag, next < deadline ? next : deadline);
        if (!answer && now_ms() < next)
            usleep(PING_EVERY_MS * 1000); /* the stream ended: don't spin */
    }
    if (answer && send_line(&client, tag, command))
        answer = wait_for(&client, tag, deadline);
    else
        answer = NULL;
    close(client.fd);
    if (!answer) {
        fprintf(stderr, "recorder: %s: no answer from the guest to '%s' within %d s\n", path, command, timeout_s);
        return 3;
    }
    puts(answer);
    return strncmp(answer, "ok", 2) == 0 ? 0 : 1;
}
