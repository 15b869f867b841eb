/*
 * What the tests of the suite share: checks, a model, a session, and a collector of replies.
 */
#ifndef SUITE_H
#define SUITE_H

#define _POSIX_C_SOURCE 200809L
#include "offramp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const char * model_path;
extern const char * folder;
extern unsigned count; /* 0: the test's own */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition,       \
                    offramp_last_error());                                                         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call) CHECK((call) == OFFRAMP_OK)
#define FAILS(status, call) CHECK((call) == (status) && offramp_last_error()[0] != '\0')

offramp_model * load(void);
/* A session of 256 tokens on one thread. */
offramp_session * start(const offramp_model * model);
/* This many tokens, end token or not. */
offramp_generate_params limit(unsigned max_tokens);
void set_text(offramp_session * session, const char * text);
offramp_statistics statistics(const offramp_session * session);
char * file_in_folder(char * buffer, size_t size, const char * name);

/* Collects pieces; stops after `stop_after` of them, if that is not 0. */
struct reply {
    char text[1 << 16];
    size_t length;
    unsigned pieces, stop_after;
    int broken;
};

int is_whole_utf8(const char * text, size_t length);
int32_t collect(const char * text, size_t length, void * user_data);

/* mistakes.c */
void versions(void);
void nulls(void);
void struct_sizes(void);
void values(void);
void buffers(void);
/* replies.c */
void replies(void);
void samplers(void);
void saved_sessions(void);
void callbacks(void);
void exits(void);
void logs(void);
/* lives.c */
void cancels(void);
void threads(void);
void cycles(void);

#endif
