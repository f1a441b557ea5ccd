/* The host's side of the line protocol: see ask.c. */
#ifndef GODWIT_ASK_H
#define GODWIT_ASK_H

/* Sends one command to the agent behind a unix socket and prints its answer. Returns the exit code:
 * 0 answer `ok`, 1 answer `err`, 3 no socket or no answer within `timeout_s` seconds. */
int ask(const char *socket_path, int timeout_s, const char *command);

#endif
