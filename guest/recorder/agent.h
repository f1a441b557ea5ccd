/* The guest's main loop: see agent.c. */
#ifndef GODWIT_AGENT_H
#define GODWIT_AGENT_H

#include <stdint.h>

/* What init shall do next; the exit codes of the program. */
enum { AGENT_POWEROFF = 0, AGENT_FAILED = 1, AGENT_REBOOT = 3 };

/* Writes records into /data/records at `rate` per second (0: as fast as they go) and answers commands until told to end. */
int agent_run(uint64_t rate);

#endif
