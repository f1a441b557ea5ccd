/* recorder: one static program for both sides. In the guest it writes records and answers commands; on the host it asks
 * the guest and checks a records file taken from a disk. */
#include "agent.h"
#include "ask.h"
#include "record.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char USAGE[] =
    "usage: recorder --agent [RATE]                     in the guest: records per second, 0 as fast as they go\n"
    "       recorder --ask SOCKET [--timeout S] COMMAND...\n"
    "       recorder --check FILE [--acked N]           all records there, and at least N of them\n";

static int check_file(const char *path, unsigned long long acked)
{
    struct ring_report report;
    uint64_t last;
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        perror(path);
        return 3;
    }
    int error = ring_scan(fd, &last);
    if (!error)
        error = ring_check(fd, last, false, &report);
    if (error) {
        fprintf(stderr, "%s: %s\n", path, strerror(-error));
        return 3;
    }
    bool good = ring_report_ok(&report) && last >= acked;
    printf("%s checked=%llu first=%llu last=%llu bad=%llu missing=%llu first_wrong=%llu%s\n", good ? "ok" : "err check:",
           (unsigned long long)report.checked, (unsigned long long)report.first, (unsigned long long)last,
           (unsigned long long)report.bad, (unsigned long long)report.missing, (unsigned long long)report.first_wrong,
           last < acked ? " (acknowledged records are lost)" : "");
    return good ? 0 : 1;
}

static int ask_words(int argc, char **argv)
{
    int timeout_s = 60, word = 3;
    char command[512] = "";
    if (argc > 4 && strcmp(argv[3], "--timeout") == 0) {
        timeout_s = atoi(argv[4]);
        word = 5;
    }
    if (word >= argc)
        return fputs(USAGE, stderr), 2;
    for (; word < argc; word++) {
        if (strlen(command) + strlen(argv[word]) + 2 > sizeof command)
            return fputs("recorder: command too long\n", stderr), 2;
        if (*command)
            strcat(command, " ");
        strcat(command, argv[word]);
    }
    return ask(argv[2], timeout_s, command);
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "--agent") == 0)
        return agent_run(argc > 2 ? strtoull(argv[2], NULL, 10) : 0);
    if (argc >= 4 && strcmp(argv[1], "--ask") == 0)
        return ask_words(argc, argv);
    if (argc == 3 && strcmp(argv[1], "--check") == 0)
        return check_file(argv[2], 0);
    if (argc == 5 && strcmp(argv[1], "--check") == 0 && strcmp(argv[3], "--acked") == 0)
        return check_file(argv[2], strtoull(argv[4], NULL, 10));
    fputs(USAGE, stderr);
    return 2;
}
